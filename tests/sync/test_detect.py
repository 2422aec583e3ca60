"""From a file to its verdict: scores through the whole path, JSON, folders, report and fix on the command line."""

import dataclasses
import functools
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mtd_jax.checkpoint import save_model
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.errors import UserError
from mtd_jax.faces.clips import face_clips
from mtd_jax.faces.search import FindSettings
from mtd_jax.network.model import SyncModel
from mtd_jax.preprocess.command import preprocess
from mtd_jax.scoring import OUT_OF_CLIP, Scorer, score_clip
from mtd_jax.sync import command as module
from mtd_jax.sync.detect import detect_offset, motion
from mtd_jax.sync.evidence import estimate
from mtd_jax.sync.report import page
from mtd_jax.sync.verdict import Result, Track, course_of
from mtd_jax.synthetic.clips import portrait, record
from mtd_jax.video.decode import open_video
from mtd_jax.video.write import delay, write_mp4
from tests.helpers.configs import STUDENT
from tests.helpers.scores import made_up
from tests.helpers.videos import SquareDetector, mux, noise, with_squares


@pytest.fixture(scope="module")
def model():
    return SyncModel(STUDENT, seed=0)


@pytest.fixture(scope="module")
def recording():
    talk = record(0, 3, 0, 3.0)
    return (*portrait(talk), talk.waveform)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small"
    save_model(path, model)
    return path


def film(path, recording, shift=0):
    frames, _, waveform = recording
    write_mp4(path, frames, waveform, audio_delay_samples=640 * shift)
    return path


def boxes(path, recording):
    path.write_text(json.dumps({"box": list(recording[1])}))
    return str(path)


def score_map(model, recording, path, shift):
    """Through the whole path: mux, decode, crop, mel, score."""
    frames, box, waveform = recording
    # Sound without loss: an encoder's noise would depend on where its frames fall.
    mux(path, frames, np.arange(len(frames)) / 25, delay(waveform, 640 * shift), audio_codec="pcm_s16le")
    return detect_offset(model, path, faces=KnownFace(box), thorough=True).tracks[0].scores.table


@pytest.fixture(scope="module")
def still(model, recording, tmp_path_factory):
    return score_map(model, recording, tmp_path_factory.mktemp("still") / "a.mkv", 0)


@pytest.mark.parametrize("shift", [-7, -5, 1, 5])  # multiples of 5 are whole mel columns
def test_shifted_sound_moves_the_score_map(model, recording, still, tmp_path, shift):
    moved = score_map(model, recording, tmp_path / "a.mkv", shift)

    def error(k):
        """Between the maps, if later sound by k frames puts into column c + k what was in column c."""
        a, b = still[10:-10, max(-k, 0) : 31 - max(k, 0)], moved[10:-10, max(k, 0) : 31 + min(k, 0)]
        return np.nanmean(np.abs(a - b))

    errors = {k: error(k) for k in range(-9, 10)}
    assert min(errors, key=errors.get) == shift
    if shift % 5 == 0:
        assert errors[shift] < 0.02 * np.nanstd(still)


def test_chunks_and_spacing_do_not_change_scores(model, recording, tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", recording)
    face, scorer = KnownFace(recording[1]), Scorer(model)
    whole = detect_offset(scorer, path, faces=face, max_shift=7, thorough=True).tracks[0].scores
    monkeypatch.setattr("mtd_jax.sync.detect.CONFIDENT", 0.0)  # or it would look closer
    spaced = detect_offset(scorer, path, faces=face, max_shift=7).tracks[0].scores
    np.testing.assert_array_equal(spaced.starts, whole.starts[::5])
    np.testing.assert_allclose(spaced.table, whole.table[::5], atol=1e-4)
    monkeypatch.setattr("mtd_jax.sync.detect._CHUNK", 20)
    for chunked, expected in ((True, whole), (False, spaced)):
        found = detect_offset(scorer, path, faces=face, max_shift=7, thorough=chunked).tracks[0].scores
        np.testing.assert_allclose(found.table, expected.table, atol=1e-4)


def test_a_shot_is_compared_with_the_audio_around_it(model, recording, tmp_path):
    """Two shots of 1.5 s see what the whole film sees, but for the windows that the cut goes through."""
    frames, box, waveform = recording
    path = film(tmp_path / "a.mp4", recording)
    half = len(frames) // 2 // 5 * 5
    parts = [{"box": list(box), "end_seconds": half / 25}, {"box": list(box), "start_seconds": half / 25}]
    (tmp_path / "boxes.json").write_text(json.dumps(parts))
    whole = detect_offset(model, path, faces=KnownFace(box)).tracks[0].scores
    tracks = detect_offset(model, path, faces=str(tmp_path / "boxes.json")).tracks
    assert len(tracks) == 2
    for track in tracks:
        rows = np.searchsorted(whole.starts, track.scores.starts)
        np.testing.assert_allclose(track.scores.table, whole.table[rows], atol=1e-4)


def test_inference_and_stored_clips_score_alike_but_for_jpeg(model, recording, tmp_path):
    (tmp_path / "videos/s").mkdir(parents=True)
    path = film(tmp_path / "videos/s/a.mp4", recording)
    preprocess(tmp_path / "videos", tmp_path / "out", workers=1, progress=False)
    clip = Lrs2Source(tmp_path / "out", "train", min_frames=6)[0]
    stored = score_clip(model, clip.frames[:], clip.waveform[:], reference_edges=False)
    seen = detect_offset(model, path, thorough=True).tracks[0].scores.table
    assert seen.shape == stored.shape
    both = np.isfinite(seen) & (stored > OUT_OF_CLIP)
    assert both.sum() > 0.7 * both.size
    assert np.abs(seen - stored)[both].mean() < 0.1 * np.nanstd(seen)


class KnownFace:
    """Finds one face at a known place."""

    def __init__(self, box):
        self.box = box

    def detect(self, frames):
        return [np.array([[*self.box, 1.0]], np.float32) for _ in frames]


def test_json_is_the_documented_object(model, tmp_path):
    two = {"red": lambda k: (10 + k // 2, 20, 40), "blue": lambda k: (100, 30, 36) if k >= 25 else None}
    path = mux(tmp_path / "a.mp4", with_squares(75, two), np.arange(75) / 25, noise(3.0))
    result = detect_offset(model, path, faces=SquareDetector(), max_shift=6)
    written = json.loads(result.to_json())
    assert "\n" not in result.to_json()
    names = ["video", "fps", "model", "verdict", "offset_frames", "offset_seconds", "offset_error_seconds"]
    names += [
        "confidence",
        "segments",
        "rate",
        "tracks",
        "speaker",
        "audio_track",
        "sampled",
        "within",
        "warnings",
    ]
    assert list(written) == names
    assert (written["video"], written["fps"], len(written["tracks"])) == (str(path), 25, 2)
    assert written["verdict"] in ("unknown", "in_sync", "out_of_sync") and 0 <= written["confidence"] <= 1
    assert written["verdict"] != "in_sync" or written["confidence"] >= 0.9
    assert (written["sampled"], written["rate"], written["audio_track"]) == (1.0, None, 1)
    assert abs(written["offset_frames"]) <= 6 and 0 <= written["speaker"] < 2
    for segment in written["segments"]:
        keys = {"start_seconds", "end_seconds", "offset_frames", "offset_seconds", "confidence", "track"}
        assert set(segment) == keys
    for track, (start, end) in zip(written["tracks"], [(0.0, 3.0), (1.0, 3.0)], strict=True):
        assert (track["start_seconds"], track["end_seconds"]) == (start, end)
        x0, y0, x1, y1 = track["box"]
        assert 0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 96
        assert isinstance(track["offset_frames"], int) and abs(track["offset_frames"]) <= 6
        assert track["offset_seconds"] == track["offset_frames"] / 25
        assert 0 <= track["confidence"] <= 1
        assert all(set(w) == {"start_seconds", "offset_frames", "score"} for w in track["windows"])
        assert start <= track["windows"][0]["start_seconds"] < track["windows"][-1]["start_seconds"] < end
    assert any("hardly moves" in line for line in result.warnings)


def test_folder_goes_on_past_bad_files(checkpoint, recording, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "films"
    folder.mkdir()
    monkeypatch.setattr(module, "face_source", lambda name: KnownFace(recording[1]))
    film(folder / "b.mp4", recording)
    assert module.measure(checkpoint, folder, as_json=True) == 0
    capsys.readouterr()
    (folder / "a.mp4").write_bytes(b"no video at all")
    assert module.measure(checkpoint, folder, as_json=True) == 1
    out, err = capsys.readouterr()
    bad, good = map(json.loads, out.splitlines())
    assert bad["video"].endswith("a.mp4") and "not a video" in bad["error"] and good["tracks"]
    assert "measured 1 of 2, 1 failed" in err
    assert module.measure(checkpoint, folder) == 1
    assert "b.mp4" in capsys.readouterr().out


def found(name, scores):
    """A result from made-up scores."""
    whole, picture = estimate(scores), np.zeros((96, 96, 3), np.uint8)
    track = Track(0.0, 4.0, (0.0, 0.0, 9.0, 9.0), whole, [], scores, picture)
    offset = whole.offset_frames
    return Result(name, offset, offset / 25, None, whole.confidence, course_of(scores, {}, 5), [track], 0, [])


def test_filter_lists_the_clips_to_keep(checkpoint, tmp_path, capsys, monkeypatch):
    scores = {
        "in sync": made_up([0] * 150),
        "late by 3": made_up([-3] * 150),
        "cannot tell": made_up([0] * 150, lead=0.0),
        "drifts": made_up([0] * 150 + [1] * 150 + [3] * 150),
    }
    for name in scores:
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    monkeypatch.setattr(module, "detect_offset", lambda model, path, **_: found(str(path), scores[path.stem]))
    kept = {1: ["in sync"], 3: ["in sync", "late by 3"]}
    for largest, names in kept.items():
        assert module.measure(checkpoint, tmp_path, filter_max_offset=largest) == 0
        out, err = capsys.readouterr()
        assert out.splitlines() == [str(tmp_path / f"{name}.mp4") for name in names]
        assert "measured 4 of 4" in err
    assert module.measure(checkpoint, tmp_path / "late by 3.mp4", as_json=True, filter_max_offset=1) == 0
    assert json.loads(capsys.readouterr().out)["keep"] is False


def test_a_guess_is_not_written_unless_forced(checkpoint, tmp_path, monkeypatch):
    written, scores = [], made_up([0] * 150, lead=0.0)
    monkeypatch.setattr(module, "detect_offset", lambda model, path, **_: found(str(path), scores))
    monkeypatch.setattr(module, "move_audio", lambda *arguments: (written.append(arguments) or [], 1))
    (tmp_path / "a.mp4").write_bytes(b"x")
    fix = {"fix": str(tmp_path / "b.mp4")}
    with pytest.raises(UserError, match="b.mp4 was not written: the offset is a guess.*--force"):
        module.measure(checkpoint, tmp_path / "a.mp4", **fix)
    assert not written
    assert module.measure(checkpoint, tmp_path / "a.mp4", force=True, **fix) == 0 and len(written) == 1


def test_of_a_folder_the_videos_that_need_it_are_copied(checkpoint, tmp_path, monkeypatch, capsys):
    offsets = {"right": 0, "late": -6, "refused": 6, "guess": None, "[b] [x]": 0}

    def detect(model, path, **_):
        moved = offsets[Path(path).stem] if Path(path).is_relative_to(tmp_path / "films") else 0
        return found(str(path), made_up([0] * 150, lead=0.0) if moved is None else made_up([moved] * 150))

    def move(source, output, delay, measured, only):
        if Path(source).stem == "refused":
            raise UserError("no room")
        assert (round(25 * delay), measured, only) == (-6, 1, 1)
        Path(output).write_bytes(b"moved")
        return [], 1

    monkeypatch.setattr(module, "detect_offset", detect)
    monkeypatch.setattr(module, "move_audio", move)
    for name in offsets:
        (tmp_path / "films" / name).mkdir(parents=True)
        (tmp_path / "films" / name / f"{name}.mp4").write_bytes(b"x")
    fix = {"fix": str(tmp_path / "copies"), "fix_tracks": "measured", "standard": "ebu"}
    monkeypatch.setenv("COLUMNS", "250")
    assert module.measure(checkpoint, tmp_path / "films", **fix) == 1
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "within" in rows["right/right.mp4"] and "not needed" in rows["right/right.mp4"]
    assert "outside" in rows["late/late.mp4"] and "moved by -240 ms; measured again" in rows["late/late.mp4"]
    assert "failed: no room" in rows["refused/refused.mp4"] and "a guess" in rows["guess/guess.mp4"]
    assert "[b] [x]/[b] [x].mp4" in rows  # no markup
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.glob("copies/*/*")] == ["copies/late/late.mp4"]
    assert module.measure(checkpoint, tmp_path / "films", as_json=True, **fix) == 1
    copies = [json.loads(line)["copy"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(copy[:10] for copy in copies) == [
        "audio move",
        "failed: no",
        "not needed",
        "not needed",
        "not writte",
    ]
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match="a file is a file; expected a folder"):
        module.measure(checkpoint, tmp_path / "films", fix=str(tmp_path / "a file/x"))
    with pytest.raises(UserError, match="is within .*films: name a folder outside"):
        module.measure(checkpoint, tmp_path / "films", fix=str(tmp_path / "films/copies"))


def test_a_film_in_sync_is_copied_as_it_is(checkpoint, tmp_path, monkeypatch, capsys):
    moves, scores = [], made_up([0] * 150)

    def detect(model, path, **_):
        measured = found(str(path), scores)
        return dataclasses.replace(measured, offset_seconds=-0.003, offset_error_seconds=0.005)

    monkeypatch.setattr(module, "detect_offset", detect)
    monkeypatch.setattr(module, "move_audio", lambda source, output, delay, *_: moves.append(delay) or ([], 1))
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert module.measure(checkpoint, tmp_path / "a.mp4", fix=str(tmp_path / "b.mp4")) == 0
    assert moves == [0.0] and "audio left where it is" in capsys.readouterr().err


def test_no_folder_is_left_for_copies_that_nobody_needs(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "detect_offset", lambda model, path, **_: found(str(path), made_up([0] * 150)))
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(b"x")
    assert module.measure(checkpoint, tmp_path / "films", fix=str(tmp_path / "copies")) == 0
    assert not (tmp_path / "copies").exists()


def test_a_moved_copy_is_measured_by_the_track_that_was_measured(checkpoint, tmp_path, monkeypatch, capsys):
    tracks, scores = [], [made_up([6] * 150), made_up([0] * 150)]

    def detect(model, path, audio_track, **_):
        tracks.append(audio_track)
        return dataclasses.replace(found(str(path), scores[len(tracks) - 1]), audio_track=3, is_cut_short=True)

    monkeypatch.setattr(module, "detect_offset", detect)
    monkeypatch.setattr(module, "move_audio", lambda source, output, delay, measured, only: ([], measured - 1))
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert module.measure(checkpoint, tmp_path / "a.mp4", audio_track="deu", fix=str(tmp_path / "b.mp4")) == 0
    assert tracks == ["deu", "2"] and "moved by as much, unmeasured" in capsys.readouterr().err


def test_a_copy_that_is_still_out_of_sync_fails(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "detect_offset", lambda model, path, **_: found(str(path), made_up([6] * 150)))
    monkeypatch.setattr(module, "move_audio", lambda source, output, delay, measured, only: ([], measured))
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"b.mp4 was written, but is not in sync \(audio moved by \+240 ms\)"):
        module.measure(checkpoint, tmp_path / "a.mp4", fix=str(tmp_path / "b.mp4"))


def test_a_repaired_copy_is_measured_by_its_only_track(checkpoint, tmp_path, monkeypatch):
    tracks, scores = [], made_up([0] * 150 + [6] * 150)

    def detect(model, path, audio_track, **_):
        tracks.append(audio_track)
        return found(str(path), scores)

    monkeypatch.setattr(module, "detect_offset", detect)
    monkeypatch.setattr(module, "repair_audio", lambda *arguments: ["done"])
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert module.measure(checkpoint, tmp_path / "a.mp4", audio_track="2", fix=str(tmp_path / "b.mp4")) == 0
    assert tracks == ["2", None]


def test_the_page_escapes_what_it_shows():
    written = page(found("films/<script>alert(1).mp4", made_up([0] * 100)))
    assert "<script>" not in written and "&lt;script&gt;" in written


def test_the_text_says_what_a_standard_tolerates():
    told = module.text(found("a.mp4", made_up([1] * 300)), "ebu")
    assert "within EBU R37, which tolerates 40 ms early and 60 ms late" in told
    assert "outside ATSC IS-191" in module.text(found("a.mp4", made_up([1] * 300)), "atsc")
    told = module.text(found("a.mp4", made_up([-4] * 300)), "itu")
    assert (
        "within ITU-R BT.1359, which tolerates 90 ms early and 185 ms late (noticed from 45 and 125 ms on)" in told
    )
    assert "cannot tell whether" in module.text(found("a.mp4", made_up([0] * 150, lead=0.0)), "itu")


def test_one_video_text_report_and_fix(checkpoint, recording, tmp_path, capsys):
    path, page, fixed = film(tmp_path / "a.mp4", recording), tmp_path / "out.html", tmp_path / "fixed.mp4"
    face = boxes(tmp_path / "face.json", recording)
    assert module.measure(checkpoint, path, faces=face, report=str(page), fix=str(fixed), force=True) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{path}: ") and "confidence" in out
    assert "audio moved by" in err or "audio left where it is" in err
    assert "measured again: " in err
    source = page.read_text()
    assert html.escape(out.splitlines()[1].strip()) in source  # with the name of the model
    uses = re.findall(r'(?:src|href)\s*=\s*"([^"]{0,30})|url\(', source)
    assert len(uses) == 3 and all(use.startswith("data:image/png;base64,") for use in uses)
    assert "http" not in re.sub(r'"data:[^"]*"', "", source) and "<script" not in source
    assert fixed.exists() and not list(tmp_path.glob(".*partial*"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"video": "missing.mp4"}, "no such file"),
        ({"video": "."}, "no video files"),
        ({"video": ".", "fix": "x.mp4"}, "name a folder outside"),
        ({"video": ".", "report": "x.html"}, "takes one video"),
        ({"fix": "a.mp4"}, "the video itself"),
        ({"faces": "face.json"}, "face.json"),
        ({"max_shift": 1}, "from 2 to 125"),
        ({"report": "no/where.html"}, "cannot write"),
        ({"report": "."}, "is a folder"),
        ({"filter_max_offset": -1}, "filter_max_offset"),
        ({"standard": "smpte"}, "expected atsc, ebu, itu"),
        ({"video": "missing.mp4", "fix": "copies"}, "missing.mp4: no such file"),
        ({"fix": ""}, "--fix: expected a file"),
        ({"fix_tracks": "measured"}, "belong to --fix"),
        ({"fix": "b.mp4", "fix_tracks": "some"}, "expected all or measured"),
        ({"fix": "b.mp4", "report": "b.mp4"}, "the same file"),
        ({"audio": "a.mp4", "audio_track": "1"}, "exclude each other"),
    ],
)
def test_mistakes_are_one_line(checkpoint, recording, tmp_path, monkeypatch, options, message):
    (tmp_path / "empty").mkdir()
    if options.get("video") == ".":
        monkeypatch.chdir(tmp_path / "empty")
    else:
        monkeypatch.chdir(tmp_path)
        film(tmp_path / "a.mp4", recording)
    with pytest.raises(UserError, match=message) as caught:
        functools.partial(module.measure, checkpoint)(**({"video": "a.mp4"} | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "student"}, "model: expected a SyncModel or a Scorer, got str; load_model"),
        ({"path": b"a.mp4"}, "path: expected the path of a video file, got bytes"),
        ({"faces": [[0, 0, 9, 9]]}, r"faces: .*FaceBox.*got \[\[0, 0, 9, 9\]\]"),
        ({"faces": None}, "faces: .*got None"),
        ({"path": "https://example.org/a.mp4"}, "https://example.org/a.mp4: is a URL"),
    ],
)
def test_misuse_is_one_line(model, arguments, message):
    with pytest.raises(UserError, match=message):
        detect_offset(**({"model": model, "path": "a.mp4"} | arguments))


def test_the_audio_of_another_file(model, recording, tmp_path):
    frames, box, waveform = recording
    face, times = KnownFace(box), np.arange(len(frames)) / 25
    path = mux(tmp_path / "a.mkv", frames, times, waveform, audio_codec="pcm_s16le")
    mux(tmp_path / "silent.mkv", frames, times, waveform * 0, audio_codec="pcm_s16le")
    mux(tmp_path / "sound.wav", None, None, waveform, audio_codec="pcm_s16le")
    expected = detect_offset(model, path, faces=face).tracks[0].scores.table
    other = detect_offset(model, tmp_path / "silent.mkv", faces=face, audio=tmp_path / "sound.wav")
    np.testing.assert_allclose(other.tracks[0].scores.table, expected, atol=1e-4)
    mux(tmp_path / "mute.mkv", frames, times, None)
    mute = detect_offset(model, tmp_path / "mute.mkv", faces=face, audio=tmp_path / "sound.wav")
    np.testing.assert_allclose(mute.tracks[0].scores.table, expected, atol=1e-4)
    assert mute.audio_track == 0
    with pytest.raises(UserError, match="has no audio stream"):
        detect_offset(model, tmp_path / "mute.mkv", faces=face)


def test_a_still_image_moves_less_than_any_mouth(tmp_path):
    """Boxes that differ by a pixel from search to search are no motion."""
    pictures, box = portrait(record(0, 2, 0, 2.4))
    still = np.repeat(pictures[:1], 60, axis=0)
    motions = []
    for name, shown in (("still", still), ("talk", pictures[:60])):
        path = mux(tmp_path / f"{name}.mkv", shown, np.arange(60) / 25, noise(2.4), video_codec="ffv1")
        (clip,), _ = face_clips(open_video(path), Shaky(box), FindSettings(whole=0))
        motions.append(motion(clip))
    assert motions[0] < 0.6 < 1.5 < motions[1]


class Shaky:
    """A detector whose boxes are off by up to a pixel."""

    def __init__(self, box):
        self.box, self.rng = np.array(box, float), np.random.default_rng(0)

    def detect(self, frames):
        return [np.array([[*self.box + self.rng.uniform(-1, 1, 4), 0.99]], np.float32) for _ in frames]
