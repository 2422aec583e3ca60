"""Copies with moved sound: time stamps, packets, what needs encoding, refusals."""

import av
import numpy as np
import pytest

from mtd_jax.errors import UserError
from mtd_jax.media.decode import open_video
from mtd_jax.media.remux import shift_audio
from tests.videos import lag_seconds, mux, noise, numbered, rotate_mp4


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


def test_rotation_stays(tmp_path):
    source = rotate_mp4(film(tmp_path / "a.mp4"), 90)
    shift_audio(source, tmp_path / "out.mp4", 0.16)
    before, after = open_video(source), open_video(tmp_path / "out.mp4")
    assert (after.height, after.width) == (before.height, before.width) == (64, 48)


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
