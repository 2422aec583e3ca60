"""From a file to its verdict: scores through the whole path, JSON, folders, report and fix on the command line."""

import functools
import json
import re

import numpy as np
import pytest

from mtd_jax.checkpoint import save_model
from mtd_jax.data.clip import Clip
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.errors import UserError
from mtd_jax.network.model import SyncModel
from mtd_jax.preprocess.command import preprocess
from mtd_jax.scoring import OUT_OF_CLIP, Scorer, score_clip
from mtd_jax.sync import command as module
from mtd_jax.sync.detect import detect_offset, score_track
from mtd_jax.sync.report import page
from mtd_jax.sync.verdict import Result, Track, judge
from mtd_jax.synthetic.clips import portrait, record
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
    return detect_offset(model, path, faces=KnownFace(box)).tracks[0].scores


@pytest.fixture(scope="module")
def still(model, recording, tmp_path_factory):
    return score_map(model, recording, tmp_path_factory.mktemp("still") / "a.mkv", 0)


@pytest.mark.parametrize("shift", [-7, -5, 1, 5])  # multiples of 5 are whole mel columns
def test_shifted_sound_moves_the_score_map(model, recording, still, tmp_path, shift):
    moved = score_map(model, recording, tmp_path / "a.mkv", shift)

    def error(k):
        """Between the maps, if later sound by k frames puts into column c + k what was in column c."""
        a, b = still[10:-10, max(-k, 0) : 31 - max(k, 0)], moved[10:-10, max(k, 0) : 31 + min(k, 0)]
        return np.abs(a - b)[(a > OUT_OF_CLIP) & (b > OUT_OF_CLIP)].mean()

    errors = {k: error(k) for k in range(-9, 10)}
    assert min(errors, key=errors.get) == shift
    if shift % 5 == 0:
        assert errors[shift] < 0.02 * still[still > OUT_OF_CLIP].std()


def test_long_clips_score_as_in_one_piece(model, monkeypatch):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (90, 48, 96, 3), np.uint8)
    waveform = noise(3.6)
    monkeypatch.setattr("mtd_jax.sync.detect._CHUNK", 20)
    told = []
    pieces = score_track(Scorer(model), Clip("a", frames, waveform), 7, told.append)
    whole = score_clip(model, frames, waveform, max_shift=7, reference_edges=False)
    np.testing.assert_allclose(pieces, whole, atol=1e-4)
    assert told == [20, 40, 60, 80, 85]


def test_inference_and_stored_clips_score_alike_but_for_jpeg(model, recording, tmp_path):
    (tmp_path / "videos/s").mkdir(parents=True)
    path = film(tmp_path / "videos/s/a.mp4", recording)
    preprocess(tmp_path / "videos", tmp_path / "out", workers=1, progress=False)
    clip = Lrs2Source(tmp_path / "out", "train", min_frames=6)[0]
    stored = score_clip(model, clip.frames[:], clip.waveform[:], reference_edges=False)
    result = detect_offset(model, path)
    seen = result.tracks[0].scores
    assert seen.shape == stored.shape
    assert np.abs(seen - stored).mean() < 0.1 * seen[seen > OUT_OF_CLIP].std()


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
    assert list(written) == ["video", "fps", "tracks", "speaker", "warnings"]
    assert (written["video"], written["fps"], len(written["tracks"])) == (str(path), 25, 2)
    assert written["tracks"][written["speaker"]]["confidence"] == max(t["confidence"] for t in written["tracks"])
    for track, (start, end) in zip(written["tracks"], [(0.0, 3.0), (1.0, 3.0)], strict=True):
        assert (track["start_seconds"], track["end_seconds"]) == (start, end)
        x0, y0, x1, y1 = track["box"]
        assert 0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 96
        assert isinstance(track["offset_frames"], int) and abs(track["offset_frames"]) <= 6
        assert track["offset_seconds"] == track["offset_frames"] / 25
        assert 0 <= track["confidence"] <= 1 and track["in_sync"] == (abs(track["offset_frames"]) <= 1)
        assert all(set(w) == {"start_seconds", "offset_frames", "score"} for w in track["windows"])
        assert start <= track["windows"][0]["start_seconds"] < track["windows"][-1]["start_seconds"] < end
        assert set(track["drift"]) == {"detected", "segments"}
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
    assert "1 of 2 videos measured, 1 failed" in err
    assert module.measure(checkpoint, folder) == 1
    assert "b.mp4" in capsys.readouterr().out


def found(name, *verdicts):
    """A result with the verdicts of made-up scores; the last track is the speaker's."""
    picture = np.zeros((96, 96, 3), np.uint8)
    scores = np.zeros((100, 31), np.float32)
    tracks = [Track(0.0, 4.0, (0.0, 0.0, 9.0, 9.0), verdict, scores, picture) for verdict in verdicts]
    return Result(name, tracks, len(tracks) - 1, [])


def test_filter_lists_the_clips_to_keep(checkpoint, tmp_path, capsys, monkeypatch):
    verdicts = {
        "in sync": judge(made_up([0] * 150)),
        "late by 3": judge(made_up([-3] * 150)),
        "cannot tell": judge(made_up([0] * 150, lead=0.0)),
        "drifts": judge(made_up([0] * 150 + [1] * 150 + [3] * 150)),
    }
    for name in verdicts:
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    monkeypatch.setattr(module, "detect_offset", lambda model, path, **_: found(str(path), verdicts[path.stem]))
    kept = {1: ["in sync"], 3: ["in sync", "late by 3"]}
    for largest, names in kept.items():
        assert module.measure(checkpoint, tmp_path, filter_max_offset=largest) == 0
        out, err = capsys.readouterr()
        assert out.splitlines() == [str(tmp_path / f"{name}.mp4") for name in names]
        assert "4 of 4 videos measured" in err
    assert module.measure(checkpoint, tmp_path / "late by 3.mp4", as_json=True, filter_max_offset=1) == 0
    assert json.loads(capsys.readouterr().out)["keep"] is False


def test_json_has_every_documented_number():
    verdict = judge(made_up([2] * 100), start_seconds=1.0)
    track = json.loads(found("a.mp4", verdict).to_json())["tracks"][0]
    assert (track["score"], track["max_shift"]) == (verdict.score, 15)
    assert track["drift"]["detected"] is False
    for segment in track["drift"]["segments"]:
        assert set(segment) == {"start_seconds", "end_seconds", "offset_frames", "confidence"}
        assert segment["offset_frames"] == 2


def test_an_offset_that_changes_is_not_in_sync():
    verdict = judge(made_up([0] * 200 + [4] * 150))
    assert verdict.drifts and verdict.offset_frames == 0
    assert not verdict.in_sync and verdict.sync_words == "not in sync"
    assert judge(made_up([0] * 150, lead=0.0)).sync_words == "cannot tell"


def test_the_page_escapes_what_it_shows():
    written = page(found("films/<script>alert(1).mp4", judge(made_up([0] * 100))))
    assert "<script>" not in written and "&lt;script&gt;" in written


def test_one_video_text_report_and_fix(checkpoint, recording, tmp_path, capsys):
    path, page, fixed = film(tmp_path / "a.mp4", recording), tmp_path / "out.html", tmp_path / "fixed.mp4"
    face = boxes(tmp_path / "face.json", recording)
    assert module.measure(checkpoint, path, faces=face, report=str(page), fix=str(fixed)) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{path}: ") and "track 0" in out and "audio moved by" in err
    source = page.read_text()
    uses = re.findall(r'(?:src|href)\s*=\s*"([^"]{0,30})|url\(', source)
    assert len(uses) == 3 and all(use.startswith("data:image/png;base64,") for use in uses)
    assert "http" not in re.sub(r'"data:[^"]*"', "", source) and "<script" not in source
    assert fixed.exists() and not list(tmp_path.glob(".*partial*"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"video": "missing.mp4"}, "no such file"),
        ({"video": "."}, "no video files"),
        ({"video": ".", "fix": "x.mp4"}, "take one video"),
        ({"fix": "a.mp4"}, "the video itself"),
        ({"faces": "face.json"}, "face.json"),
        ({"max_shift": 1}, "from 2 to 125"),
        ({"report": "no/where.html"}, "cannot write"),
        ({"report": "."}, "is a folder"),
        ({"filter_max_offset": -1}, "filter_max_offset"),
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
