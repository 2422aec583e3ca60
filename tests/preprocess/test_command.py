"""Videos to the LRS2 layout: what is written, resumed, dropped and refused."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.errors import UserError
from mtd_jax.faces.clips import face_clips
from mtd_jax.faces.search import FindSettings
from mtd_jax.preprocess import command as module
from mtd_jax.preprocess import writer
from mtd_jax.preprocess.command import preprocess
from mtd_jax.synthetic.clips import portrait, record
from mtd_jax.video.decode import open_video
from mtd_jax.video.write import write_mp4
from tests.helpers.videos import SquareDetector, mux, noise, with_squares

RED = {"red": lambda k: (20, 20, 40)}


def film(path, squares, frames=50, sound_seconds=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = noise(frames / 25 if sound_seconds is None else sound_seconds)
    return mux(path, with_squares(frames, squares), np.arange(frames) / 25, sound)


@pytest.fixture
def detector(monkeypatch):
    """Replaces the face detector of runs in this process."""
    squares = SquareDetector()
    monkeypatch.setattr(module, "_source", lambda faces: squares)
    return squares


def run(tmp_path, **options):
    return preprocess(tmp_path / "videos", tmp_path / "out", workers=1, progress=False, **options)


def files(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_clips_match_what_inference_sees_but_for_jpeg(tmp_path):
    (tmp_path / "videos/s0").mkdir(parents=True)
    for index in range(2):
        recording = record(0, 3, index, 1.4)
        write_mp4(tmp_path / f"videos/s0/{index}.mp4", portrait(recording)[0], recording.waveform)
    summary = preprocess(tmp_path / "videos", tmp_path / "out", workers=2, progress=False)
    assert (summary.clips, summary.dropped, summary.failed) == (["s0/0.t1", "s0/1.t1"], {}, {})
    stored = Lrs2Source(tmp_path / "out", "train", min_frames=26)
    detector = module._source("mtcnn")
    for clip in (stored[0], stored[1]):
        (seen,), _ = face_clips(open_video(tmp_path / "videos" / f"{clip.name.removesuffix('.t1')}.mp4"), detector)
        assert clip.num_frames == seen.clip.num_frames == 35
        np.testing.assert_array_equal(clip.waveform[:], seen.clip.waveform)
        difference = np.abs(clip.frames[:].astype(int) - seen.clip.frames[:])
        assert difference.mean() < 1.5 and difference.max() < 40


def test_a_finished_video_is_left_alone_and_a_changed_one_is_done_anew(tmp_path, detector):
    film(tmp_path / "videos/a/one.mp4", RED)
    film(tmp_path / "videos/a/two.mp4", RED)
    assert run(tmp_path).was_there == []
    before, seen = files(tmp_path / "out/a"), detector.seen
    again = run(tmp_path)
    assert again.was_there == ["a/one", "a/two"] and again.clips == ["a/one.t1", "a/two.t1"]
    assert files(tmp_path / "out/a") == before and detector.seen == seen
    film(tmp_path / "videos/a/two.mp4", RED, frames=40)
    assert run(tmp_path).was_there == ["a/one"]
    assert len(list((tmp_path / "out/a/two.t1").glob("*.jpg"))) == 40
    assert run(tmp_path, find=FindSettings(every=7)).was_there == []


def test_clips_that_vanish_from_a_changed_video_are_removed(tmp_path, detector):
    path = film(tmp_path / "videos/a/one.mp4", RED)
    film(tmp_path / "videos/a/two.mp4", RED)
    run(tmp_path)
    shutil.move(film(tmp_path / "other.mp4", {}), path)
    assert run(tmp_path).clips == ["a/two.t1"]
    assert not (tmp_path / "out/a/one.t1").exists()


def killed(tmp_path):
    """Leaves behind what a process does that is killed in the middle of a/two."""
    code = (
        "import os, pathlib\n"
        "from mtd_jax.preprocess import writer as w\n"
        "from mtd_jax.faces.boxes import WHOLE_FRAME\n"
        "from mtd_jax.faces.search import FindSettings\n"
        "crops = w.crop_tracks\n"
        "def some(video, tracks, **options):\n"
        "    for count, item in enumerate(crops(video, tracks, **options)):\n"
        "        if count == 20: os._exit(9)\n"
        "        yield item\n"
        "w.crop_tracks = some\n"
        f"root = pathlib.Path({str(tmp_path)!r})\n"
        "job = w.Job('a/two', root / 'videos/a/two.mp4', root / 'out', 'whole', False, FindSettings())\n"
        "w.write_clips(job, WHOLE_FRAME)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert len(list((tmp_path / "out/.preprocess/partial").rglob("*.jpg"))) == 20


def test_an_interrupted_run_leaves_no_half_clip_and_goes_on(tmp_path, detector, monkeypatch):
    for name in ("one", "two"):
        film(tmp_path / f"videos/a/{name}.mp4", RED)
    crops = writer.crop_tracks

    def interrupted(video, tracks, **options):
        for number, item in enumerate(crops(video, tracks, **options)):
            if video.path.stem == "two" and number == 20:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(writer, "crop_tracks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert sorted(path.name for path in (tmp_path / "out/a").iterdir()) == ["one.t1"]
    monkeypatch.setattr(writer, "crop_tracks", crops)
    killed(tmp_path)
    summary = run(tmp_path)
    assert summary.was_there == ["a/one"] and summary.clips == ["a/one.t1", "a/two.t1"]
    assert len(list((tmp_path / "out/a/two.t1").iterdir())) == 51
    assert sorted(path.name for path in (tmp_path / "out/.preprocess").iterdir()) == ["videos"]


def test_losses_are_listed_with_reasons_and_the_rest_goes_on(tmp_path, detector):
    film(tmp_path / "videos/a/good.mp4", RED)
    film(tmp_path / "videos/a/empty.mp4", {})
    film(tmp_path / "videos/a/short.mp4", {"red": lambda k: (20, 20, 40) if k < 9 else None})
    film(tmp_path / "videos/a/mute_end.mp4", RED, frames=75, sound_seconds=0.5)
    film(tmp_path / "videos/a/two.mp4", {**RED, "blue": lambda k: (90, 20, 30)})
    (tmp_path / "videos/a/broken.mp4").write_bytes(b"nothing " * 99)
    summary = run(tmp_path, list_name="val")
    assert summary.clips == ["a/good.t1", "a/two.t1"] and summary.videos == 6
    assert list(summary.failed) == ["a/broken"] and "not a video" in summary.failed["a/broken"]
    assert summary.dropped["a/empty"] == ["no face was found in 2.0 s of video"]
    assert "long enough" in summary.dropped["a/short"][0]
    assert "have audio" in summary.dropped["a/mute_end"][0]
    assert summary.dropped["a/two"] == ["no clip for 0–2 s: next to a larger face"]
    assert (tmp_path / "out/val.txt").read_text() == "a/good.t1\na/two.t1\n"
    written = (tmp_path / "out/val_summary.txt").read_text().splitlines()
    assert written == summary.lines() and written[0] == "2 clips of 6 videos" and len(written) == 6
    second = run(tmp_path, list_name="val")
    assert second.failed == summary.failed and second.dropped == summary.dropped


def test_several_tracks_are_numbered_in_time(tmp_path, detector):
    first, second = (lambda k: (20, 20, 40) if k < 60 else None), (lambda k: (90, 20, 40) if k >= 60 else None)
    film(tmp_path / "videos/a/one.mp4", {"red": first, "blue": second}, frames=125)
    assert run(tmp_path).clips == ["a/one.t1", "a/one.t2"]
    counts = [len(list((tmp_path / f"out/a/one.t{n}").glob("*.jpg"))) for n in (1, 2)]
    assert counts == [60, 65]


def test_all_faces(tmp_path, detector):
    film(tmp_path / "videos/a/two.mp4", {**RED, "blue": lambda k: (90, 20, 30)})
    assert run(tmp_path, all_faces=True).clips == ["a/two.t1", "a/two.t2"]


def test_videos_cropped_to_the_face_already(tmp_path):
    film(tmp_path / "videos/a/one.mp4", {}, frames=8)
    assert run(tmp_path, faces="whole").clips == ["a/one.t1"]
    assert len(list((tmp_path / "out/a/one.t1").glob("*.jpg"))) == 8


def test_one_odd_video_does_not_end_the_run(tmp_path, detector, monkeypatch):
    film(tmp_path / "videos/a/one.mp4", RED)
    film(tmp_path / "videos/a/two.mp4", RED)
    find = writer.find_faces

    def odd(video, *rest):
        if video.path.stem == "one":
            raise ZeroDivisionError("of\nall things")
        return find(video, *rest)

    monkeypatch.setattr(writer, "find_faces", odd)
    summary = run(tmp_path)
    assert summary.failed == {"a/one": "unexpected ZeroDivisionError: of all things"}
    assert summary.clips == ["a/two.t1"]


def test_refusals(tmp_path, detector):
    film(tmp_path / "videos/a/empty.mp4", {})
    with pytest.raises(UserError, match="none of the 1 videos gave a clip: a/empty: no face"):
        run(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/data.txt").touch()
    with pytest.raises(UserError, match="something else"):
        preprocess(tmp_path / "videos", tmp_path / "foreign", progress=False)
    with pytest.raises(UserError, match="boxes belong to one video"):
        run(tmp_path, faces="boxes.json")
    with pytest.raises(UserError, match="workers"):
        preprocess(tmp_path / "videos", tmp_path / "out", workers=0)
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match="cannot write"):
        preprocess(tmp_path / "videos", tmp_path / "a file/out", workers=1, progress=False)


def contents(folder):
    """Clip → number of its pictures, of all folders with sound."""
    clips = [path.parent for path in folder.rglob("audio.wav")]
    return {str(clip.relative_to(folder)): len(list(clip.glob("*.jpg"))) for clip in clips}


def listed(tmp_path, name="train"):
    return (tmp_path / f"out/{name}.txt").read_text().split()


def test_clips_are_never_stored_inside_one_another(tmp_path, detector):
    """A clip is replaced as a whole, so what is stored inside it would go with it."""
    film(tmp_path / "videos/s/a.mp4", RED, frames=30)
    film(tmp_path / "videos/s/a.t1.mp4", RED, frames=31)
    film(tmp_path / "videos/s/a/b.mp4", RED, frames=32)
    film(tmp_path / "videos/s/a.t1/b.mp4", RED, frames=33)
    expected = {"s/a.t1": 30, "s/a.t1.t1": 31, "s/a/b.t1": 32, "s/a_t1/b.t1": 33}
    for every in (5, 7):  # other settings: all clips are replaced
        summary = run(tmp_path, find=FindSettings(every=every))
        assert summary.failed == {} and sorted(listed(tmp_path)) == sorted(expected)
        assert contents(tmp_path / "out") == expected


def test_videos_of_one_name_are_refused_before_any_work(tmp_path, detector):
    film(tmp_path / "videos/s/x.mp4", RED)
    film(tmp_path / "videos/s/x.mkv", RED)
    with pytest.raises(UserError, match=r"s/x.mkv and .*s/x.mp4 would give clips of one name \(s/x\): rename"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_video_whose_name_an_earlier_run_gave_to_another(tmp_path, detector):
    film(tmp_path / "videos/s/x.mp4", RED, frames=30)
    film(tmp_path / "videos/s/y.mp4", RED, frames=30)
    run(tmp_path)
    shutil.move(tmp_path / "videos/s/x.mp4", tmp_path / "x.mp4")
    film(tmp_path / "videos/s/x.mkv", RED, frames=33)
    for _ in range(2):
        summary = run(tmp_path)
        assert summary.was_there == ["s/y"] and "rename it, or delete them" in summary.failed["s/x"]
        assert contents(tmp_path / "out") == {"s/x.t1": 30, "s/y.t1": 30}
        assert sorted(listed(tmp_path)) == ["s/x.t1", "s/y.t1"]
    shutil.rmtree(tmp_path / "out/s/x.t1")  # one of the ways out that the message names
    assert run(tmp_path).failed == {} and contents(tmp_path / "out") == {"s/x.t1": 33, "s/y.t1": 30}


def test_a_video_that_was_moved_is_left_alone(tmp_path, detector):
    film(tmp_path / "videos/s/x.mp4", RED)
    run(tmp_path)
    shutil.move(tmp_path / "videos", tmp_path / "elsewhere")
    again = preprocess(tmp_path / "elsewhere", tmp_path / "out", workers=1, progress=False)
    assert again.was_there == ["s/x"]


def test_lists_of_several_runs(tmp_path, detector):
    for folder, clip in (("one", "a/x"), ("one", "a/y"), ("two", "b/x"), ("val", "c/x")):
        film(tmp_path / f"{folder}/{clip}.mp4", RED, frames=30)
    film(tmp_path / "two/a/x.mp4", RED, frames=40)

    def add(folder, **options):
        return preprocess(tmp_path / folder, tmp_path / "out", workers=1, progress=False, **options)

    add("one")
    assert add("val", list_name="val").notes == []
    second = add("two")
    assert second.clips == ["b/x.t1"]
    assert list(second.failed) == ["a/x"] and str(tmp_path / "one/a/x.mp4") in second.failed["a/x"]
    assert second.notes == ["train.txt also has 2 clips of other videos, from earlier runs"]
    assert second.lines()[1] == second.notes[0]
    assert listed(tmp_path) == ["a/x.t1", "a/y.t1", "b/x.t1"] and listed(tmp_path, "val") == ["c/x.t1"]
    assert contents(tmp_path / "out")["a/x.t1"] == 30
    before = (tmp_path / "out/train.txt").read_text()
    assert add("one").was_there == ["a/x", "a/y"] and (tmp_path / "out/train.txt").read_text() == before
    shutil.move(film(tmp_path / "other.mp4", {}), tmp_path / "one/a/x.mp4")
    add("one")
    assert listed(tmp_path) == ["a/y.t1", "b/x.t1"]
    assert add("val").notes[1] == "1 of the clips are on val.txt too (first: c/x.t1)"


@pytest.mark.parametrize("name", ["", "a/b", "..", "train.txt", "train_summary", "my list"])
def test_list_names(tmp_path, detector, name):
    film(tmp_path / "videos/s/x.mp4", RED)
    with pytest.raises(UserError, match="--list_name: expected a plain name"):
        run(tmp_path, list_name=name)
    assert not (tmp_path / "out").exists()


def test_dead_ends_of_the_tree_and_names_too_long_are_failures(tmp_path, detector):
    film(tmp_path / "videos/s/good.mp4", RED)
    os.mkfifo(tmp_path / "videos/s/pipe.mp4")
    (tmp_path / "videos/s/gone.mp4").symlink_to("nowhere.mp4")
    shutil.copy(tmp_path / "videos/s/good.mp4", tmp_path / f"videos/s/{'x' * 250}.mp4")
    summary = run(tmp_path)
    assert summary.clips == ["s/good.t1"] and len(summary.failed) == 3
    assert "is a pipe" in summary.failed["s/pipe"] and "a link to nowhere.mp4" in summary.failed["s/gone"]
    assert "too long" in summary.failed[f"s/{'x' * 250}"]


def test_a_disk_that_refuses_ends_the_run(tmp_path, detector, monkeypatch):
    film(tmp_path / "videos/a/one.mp4", RED)

    def refuse(*args, **options):
        raise OSError(28, "disk full")

    monkeypatch.setattr(writer.soundfile, "write", refuse)
    with pytest.raises(UserError, match="cannot write to .*disk full"):
        run(tmp_path)


def test_a_silent_video_gives_no_clip(tmp_path, detector):
    film(tmp_path / "videos/s/loud.mp4", {"red": lambda k: (10, 20, 40)})
    silent = with_squares(50, {"red": lambda k: (10, 20, 40)})
    mux(tmp_path / "videos/s/silent.mp4", silent, np.arange(50) / 25, noise(2.0) * 0)
    summary = run(tmp_path)
    assert summary.clips == ["s/loud.t1"]
    assert summary.dropped["s/silent"] == ["no clip: the audio is silent"]
