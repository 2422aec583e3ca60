"""The sync score of generated videos: hand values, intervals, the command."""

import dataclasses
import json

import numpy as np
import pytest

from mtd_jax.cli import run
from mtd_jax.errors import UserError
from mtd_jax.sync import score_command as command
from mtd_jax.sync.score import MEASURES, ClipScore, clip_score, compared, set_score
from tests.helpers.scores import made_up
from tests.sync.test_detect import found

ONE = ClipScore(1.0, 0.5, 0, 0.9, -1.0, 2.0, 40)


def test_the_measures_of_a_clip_by_hand():
    scores = made_up([2] * 100)
    table = np.zeros_like(scores.table)
    table[np.isnan(scores.table)] = np.nan
    table[:, 13] = np.where(np.isnan(table[:, 13]), np.nan, 3.0)  # the audio is early by 2
    table[:, 15] = 0.5
    score = clip_score(found("a", dataclasses.replace(scores, table=table)))
    assert (score.logit, score.distance, score.contrast) == pytest.approx((0.5, -3.0, 3.0))
    assert score.offset_frames == 2 and score.windows == 100
    assert score.within_1 < 0.1  # the windows at the start, whose best offset is beyond the audio
    assert clip_score(found("a", made_up([0] * 100, lead=9.0))).within_1 == 1.0


def test_a_clip_that_is_shorter_than_the_range_has_a_score():
    score = clip_score(found("a", made_up([0] * 8, lead=9.0)))
    assert score.windows == 8 and all(np.isfinite(value) for value in dataclasses.astuple(score))
    scores = made_up([0] * 8)
    silent = dataclasses.replace(scores, table=np.full_like(scores.table, np.nan))
    with pytest.raises(UserError, match="no audio where the face is seen"):
        clip_score(dataclasses.replace(found("a", scores), tracks=found("a", silent).tracks))


def test_a_set_has_means_with_intervals_and_counts_of_offsets():
    clips = {str(n): dataclasses.replace(ONE, logit=float(n % 4), offset_frames=n % 3) for n in range(60)}
    result = set_score(clips)
    assert result["clips"] == 60 and result["offsets"] == {"0": 20, "1": 20, "2": 20}
    low, high = result["logit"]["interval"]
    error = np.std([n % 4 for n in range(60)]) / 60**0.5
    assert result["logit"]["mean"] == 1.5 and high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert result["contrast"] == {"mean": 2.0, "interval": [2.0, 2.0]}
    assert set_score(clips) == result


def test_pairs_are_compared_by_name():
    clips = {n: dataclasses.replace(ONE, logit=value) for n, value in (("a", 1.0), ("b", 3.0), ("c", 9.0))}
    references = {n: dataclasses.replace(ONE, logit=value) for n, value in (("a", 2.0), ("b", 4.0), ("d", 9.0))}
    result = compared(clips, references)
    assert (
        result["pairs"] == 2
        and result["alone"] == ["c", "d"]
        and result["logit"] == {"mean": -1.0, "interval": [-1.0, -1.0]}
    )


def test_a_confidence_that_is_not_sure_does_not_look_so(capsys):
    """Nor are long names cut, of which the ends tell clips apart."""
    name = "generated_by_the_second_version_of_ours_0001"
    clips = {name: dataclasses.asdict(dataclasses.replace(ONE, confidence=0.8999))}
    result = {"score": "", "model": "", "clips": clips, "failed": {}, "set": set_score({name: ONE})}
    command._print(result)
    rows = capsys.readouterr().out.splitlines()
    first = "".join(row.split("│")[1].strip() for row in rows if row.count("│") == 8)
    assert first == name and any("0.89" in row for row in rows)


@pytest.fixture
def films(tmp_path, monkeypatch):
    """Folders of made-up films, whose names say how early their audio is."""

    def detect(scorer, path, **options):
        assert options["thorough"] and options["max_shift"] == 15
        if "broken" in path.stem:
            raise UserError(f"{path}: no face")
        return found(str(path), made_up([int(path.stem.split("_")[1])] * 100))

    monkeypatch.setattr(command, "detect_offset", detect)
    monkeypatch.setattr(command, "Scorer", lambda model: None)
    for folder, names in (("made", ("a_0", "b_4", "sub/c_0", "broken_0")), ("real", ("a_0", "b_4", "z_0"))):
        for name in names:
            path = tmp_path / folder / f"{name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return tmp_path


def test_the_command_writes_tables_json_and_a_page(films, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    flags = ["", "--mode=score", f"--videos={films}/made", "--faces=whole"]
    assert run([*flags, f"--references={films}/real", f"--report={films}/page.html"]) == 1
    out, err = capsys.readouterr()
    assert "sub/c_0" in out and "offsets in frames: +0: 2, +4: 1" in out and "version 1" in out
    assert (
        "3 clips, 1 failed" in out and "difference of pairs (2)" in out and "broken_0.mp4: failed: no face" in err
    )
    page = (films / "page.html").read_text()
    assert "in no pair: sub/c_0, z_0" in out and "In no pair: sub/c_0, z_0" in page
    assert "<h2>Failed</h2>" in page and "broken_0.mp4: no face" in page
    assert "data:image/png;base64," in page and all(title in page for title in MEASURES.values())
    (films / "made" / "broken_0.mp4").unlink()
    assert run([*flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["set"]["clips"] == 3 and result["failed"] == {} and result["model"]
    assert result["clips"]["b_4"]["offset_frames"] == 4 and "references" not in result


def test_what_cannot_be_scored_is_one_line(films, capsys):
    (films / "made" / "a_0.mov").write_bytes(b"")
    (films / "none").mkdir()
    (films / "none" / "broken_1.mp4").write_bytes(b"")
    (films / "others").mkdir()
    (films / "others" / "x_0.mp4").write_bytes(b"")
    for arguments, message in (
        ([f"--videos={films}/made"], "another video there is called a_0, too"),
        ([f"--videos={films}/none"], "none of the 1 videos could be scored"),
        ([f"--videos={films}/made/b_4.mp4"], "expected a folder of videos"),
        ([f"--videos={films}/others", f"--references={films}/real"], "no video has the name of one in"),
        ([], "needs --videos"),
    ):
        assert run(["", "--mode=score", "--faces=whole", *arguments]) == 1
        assert message in capsys.readouterr().err
