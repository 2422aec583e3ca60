"""Copies with moved sound: time stamps, packets, what needs encoding, refusals."""

import errno
import os
import subprocess
import sys

import av
import numpy as np
import pytest

from mtd_jax.errors import UserError
from mtd_jax.media.copy_plan import open_writer
from mtd_jax.media.decode import open_video, read
from mtd_jax.media.remux import check_output, shift_audio
from tests.videos import lag_seconds, mux, noise, number_of, numbered, rotate_mp4


def film(path, **options):
    return mux(path, numbered(50), np.arange(50) / 25, noise(2.0), **options)


def packets(path, kind):
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.best(kind)) if p.size]


def lead(path):
    """When the first sound packet is due after the first picture, in seconds."""
    with av.open(str(path)) as container:
        first = {}
        for p in container.demux():
            if p.pts is not None:
                first.setdefault(p.stream.type, float(p.pts * p.time_base))
    return first["audio"] - first["video"]


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv", "out.mov"])
@pytest.mark.parametrize("delay", [0.16, -0.28, 0.0])
@pytest.mark.parametrize("source", ["a.mp4", "a.mkv"])
def test_packets_are_copied_and_the_sound_moves(tmp_path, source, target, delay):
    source = film(tmp_path / source)
    target = tmp_path / target
    assert shift_audio(source, target, delay) == []
    assert lead(target) - lead(source) == pytest.approx(delay, abs=0.002)
    for kind in ("video", "audio"):
        assert packets(target, kind) == packets(source, kind)
    before, after = open_video(source), open_video(target)
    assert lag_seconds(after.waveform(), before.waveform()) == pytest.approx(delay, abs=0.002)
    assert after.count_frames() == before.count_frames()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({source.name, target.name})


def test_a_container_without_start_times_forces_encoding_and_says_so(tmp_path):
    source = film(tmp_path / "a.mp4")
    for delay in (0.16, -0.16):
        notes = shift_audio(source, tmp_path / "out.avi", delay)
        assert any("the audio was encoded anew" in note for note in notes)
        after = open_video(tmp_path / "out.avi")
        assert lag_seconds(after.waveform(), open_video(source).waveform()) == pytest.approx(delay, abs=0.005)


@pytest.mark.parametrize("degrees", [90, 180])
@pytest.mark.parametrize(
    "target, encoded", [("out.mp4", False), ("out.mkv", False), ("out.ts", True), ("out.flv", True)]
)
def test_pictures_stay_upright(tmp_path, target, encoded, degrees):
    source, target = rotate_mp4(film(tmp_path / "a.mp4"), degrees), tmp_path / target
    notes = shift_audio(source, target, 0.16)
    assert [note.startswith("the video was encoded anew") for note in notes] == [True] * encoded
    before, after = read(source)[0], read(target)[0]
    assert after.shape[1:] == before.shape[1:] == ((64, 48, 3) if degrees == 90 else (48, 64, 3))
    assert np.abs(after.astype(int) - before[: len(after)]).mean() < 2


def test_uneven_times_survive_a_container_that_counts_pictures(tmp_path):
    times = np.cumsum(np.r_[0, np.random.default_rng(0).uniform(0.02, 0.06, 49)])
    source = mux(tmp_path / "a.mp4", numbered(50, 49, 65), times, noise(2.0))
    notes = shift_audio(source, tmp_path / "out.avi", -0.16)
    assert any("odd last row or column" in note for note in notes)
    before, after = read(source)[0], read(tmp_path / "out.avi")[0]
    assert np.mean([abs(number_of(a) - number_of(b)) for a, b in zip(after, before, strict=False)]) < 0.2
    assert len(after) >= len(before) - 1


def test_refusals_leave_everything_as_it_was(tmp_path):
    source = film(tmp_path / "a.mp4")
    content = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)
    for output, message in (
        ("a.mp4", "the video itself"), ("link.mp4", "the video itself"), ("out.xyz", "suffix"), ("out", "suffix"),
        ("no/out.mp4", "no folder"), (".", "folder"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            shift_audio(source, tmp_path / output, 0.16)
    assert source.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("suffix", ["gif", "mp3", "wav", "flac", "png", "srt", "m3u8", "h264"])
def test_containers_that_hold_no_film_are_refused_before_any_work(tmp_path, suffix):
    source = film(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=f"out.{suffix}: the {suffix} container .*expected a suffix such as .mp4"):
        check_output(source, tmp_path / f"out.{suffix}")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_is_no_reason_to_encode(tmp_path, monkeypatch, code):
    source, attempts = film(tmp_path / "a.mp4"), []

    def fail(_, output, *rest):
        attempts.append(rest)
        with open_writer(output):
            av.error.err_check(-code)

    monkeypatch.setattr("mtd_jax.media.remux.write_copy", fail)
    with pytest.raises(UserError, match=f"cannot write .*out.mp4: {os.strerror(code)}$"):
        shift_audio(source, tmp_path / "out.mp4", 0.16)
    assert len(attempts) == 1 and [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv", "out.avi"])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path, target):
    """A limit on the size of files fails as a full disk does: in the midst of writing."""
    source = film(tmp_path / "a.mp4")
    limit = source.stat().st_size // 2
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "import sys; from mtd_jax.errors import UserError; from mtd_jax.media.remux import shift_audio\n"
        "try: shift_audio(sys.argv[1], sys.argv[2], 0.16)\n"
        "except UserError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, source, tmp_path / target], capture_output=True, text=True, timeout=100
    )
    assert run.stdout == f"cannot write {tmp_path / target}: File too large\n", run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
