"""The .mp4 writer: what comes back from a decoder is what went in, on time."""

import av
import numpy as np
import pytest

from mtd_jax.errors import UserError
from mtd_jax.video.write import delay, write_mp4

RATE = 16_000


@pytest.fixture
def clip():
    """Frames that are each of one grey level, and noise, which correlates only when it is aligned."""
    rng = np.random.default_rng(3)
    levels = rng.integers(30, 220, 50)
    frames = np.broadcast_to(levels[:, None, None, None], (50, 64, 80, 3)).astype(np.uint8)
    smooth = np.convolve(rng.standard_normal(32_000), np.ones(4) / 4, mode="same")
    return frames, (6000 * smooth).astype(np.int16)


def read(path):
    """Frames with their times, and the sound placed on the container's clock, starting at time 0."""
    with av.open(str(path)) as container:
        pictures = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    sound = np.zeros(40_000)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            piece, start = frame.to_ndarray()[0], round(frame.time * RATE)
            piece = piece[max(-start, 0) :]
            start = max(start, 0)
            sound[start : start + len(piece)] = piece
    return [time for time, _ in pictures], np.stack([p for _, p in pictures]), sound


def lag_in_samples(sound, reference):
    """By how many samples `sound` comes later, from the peak of the cross-correlation."""
    size = 1 << 17
    product = np.fft.rfft(sound, size) * np.conj(np.fft.rfft(reference.astype(float), size))
    lag = int(np.argmax(np.fft.irfft(product, size)))
    return lag if lag < size // 2 else lag - size


@pytest.mark.parametrize("late", [0, 2560, -1920])
def test_decoded_sound_is_aligned_to_the_millisecond(tmp_path, clip, late):
    frames, waveform = clip
    write_mp4(tmp_path / "a.mp4", frames, waveform, audio_delay_samples=late)
    _, _, sound = read(tmp_path / "a.mp4")
    assert abs(lag_in_samples(sound, waveform) - late) <= 16


def test_every_frame_comes_back_in_order_and_on_time(tmp_path, clip):
    frames, waveform = clip
    write_mp4(tmp_path / "a.mp4", frames, waveform)
    times, decoded, _ = read(tmp_path / "a.mp4")
    np.testing.assert_allclose(times, np.arange(50) / 25, atol=1e-6)
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).max() <= 6


def test_colours_survive(tmp_path, clip):
    frames = np.full((5, 64, 64, 3), (180, 60, 40), np.uint8)
    write_mp4(tmp_path / "a.mp4", frames, clip[1][:3200])
    np.testing.assert_allclose(read(tmp_path / "a.mp4")[1][2, 32, 32], (180, 60, 40), atol=6)


def test_delay_moves_content_and_keeps_length():
    wave = np.arange(1, 6, dtype=np.int16)
    assert delay(wave, 2).tolist() == [0, 0, 1, 2, 3]
    assert delay(wave, -2).tolist() == [3, 4, 5, 0, 0]
    assert delay(wave, 0).tolist() == [1, 2, 3, 4, 5]
    assert delay(wave, 9).tolist() == delay(wave, -9).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, w: (f[:, :63], w), "even"),
        (lambda f, w: (f.astype(np.float32), w), "uint8"),
        (lambda f, w: (f[:0], w), "expected uint8 frames"),
        (lambda f, w: (f, w[None]), "int16"),
        (lambda f, w: (f, w.astype(np.float32)), "int16"),
    ],
)
def test_unfit_input_is_refused_and_leaves_nothing(tmp_path, clip, change, message):
    with pytest.raises(ValueError, match=message):
        write_mp4(tmp_path / "a.mp4", *change(*clip))
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_one_clear_error(tmp_path, clip):
    with pytest.raises(UserError, match="cannot write"):
        write_mp4(tmp_path / "missing" / "a.mp4", *clip)
