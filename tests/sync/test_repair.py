"""Audio that is moved piece by piece, or whose clock is set right: where it is afterwards, second by second."""

import numpy as np
import pytest

from mtd_jax.errors import UserError
from mtd_jax.sync.repair import piecewise, repair_audio
from mtd_jax.sync.verdict import Course
from mtd_jax.video.decode import open_video
from tests.helpers.videos import lag_seconds, mux, noise, numbered

SECONDS = 8


def video(path, sound, **options):
    times = np.arange(25 * SECONDS) / 25
    return mux(path, numbered(len(times)), times, sound, **options)


def lags(path, reference):
    """By how much the audio of each second but the outer ones comes later than the reference."""
    waveform = open_video(path).waveform()
    assert abs(len(waveform) - 16_000 * SECONDS) < 2_000
    found = []
    for second in range(1, SECONDS - 1):
        here = slice(16_000 * second, 16_000 * (second + 1))
        found.append(lag_seconds(waveform[here], reference[here]))
    return np.array(found)


def early(sound, frames):
    return np.concatenate([sound[640 * frames :], np.zeros(640 * frames, np.int16)])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_an_edit_is_undone(tmp_path, suffix):
    truth = noise(SECONDS)
    broken = np.concatenate([truth[: 4 * 16_000], early(truth, 6)[4 * 16_000 :]])
    path = video(tmp_path / f"a.{suffix}", broken, audio_codec="aac")
    notes = repair_audio(path, tmp_path / f"b.{suffix}", Course([], None, [(3.9, 4.1, 0, 6)]), 0.0, 1)
    assert "moved in 2 pieces" in notes[0]
    assert lags(path, truth)[-1] == pytest.approx(-0.24, abs=0.002)
    assert lags(tmp_path / f"b.{suffix}", truth) == pytest.approx(0, abs=0.002)
    assert len(list(open_video(tmp_path / f"b.{suffix}").frames())) == 25 * SECONDS


@pytest.mark.parametrize("rate", [0.01, -0.02])
def test_a_clock_is_set_right(tmp_path, rate):
    """The audio starts 0.08 s early and runs fast by `rate`."""
    truth = noise(2 * SECONDS)
    places = (np.arange(16_000 * SECONDS) * (1 + rate)) + 0.08 * 16_000
    broken = np.interp(places, np.arange(len(truth)), truth).astype(np.int16)
    path = video(tmp_path / "a.mkv", broken, audio_codec="pcm_s16le")
    notes = repair_audio(path, tmp_path / "b.mkv", Course([], rate / (1 + rate), []), 0.08, 1)
    assert ("slower" if rate > 0 else "faster") in notes[0]
    assert np.abs(lags(path, truth)).max() > 0.1
    found = open_video(tmp_path / "b.mkv").waveform()
    for second in (1, 3, 5):
        here = slice(16_000 * second, 16_000 * (second + 1))
        assert abs(lag_seconds(found[here], truth[here])) < 0.01


def test_audio_that_starts_late_stays_where_it_is(tmp_path):
    truth = noise(SECONDS)
    path = video(tmp_path / "a.mkv", truth[: -640 * 5], sound_start=0.2, audio_codec="pcm_s16le")
    repair_audio(path, tmp_path / "b.mkv", Course([], None, [(3.9, 4.1, -5, -5)]), 0.0, 1)
    assert lags(tmp_path / "b.mkv", truth) == pytest.approx(0, abs=0.002)


def test_pieces_by_hand():
    samples = np.arange(1, 13)[:, None]
    course = Course([], None, [(4.0, 4.0, 25, 0), (8.0, 8.0, 0, -50)])
    assert piecewise(samples, course, 1)[:, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 11, 12, 0, 0]


def test_refusals(tmp_path):
    path = video(tmp_path / "a.mp4", noise(SECONDS))
    for output, message in (("a.mp4", "the video itself"), ("b.wav", "does not hold a video")):
        with pytest.raises(UserError, match=message):
            repair_audio(path, tmp_path / output, Course([], None, [(4.0, 4.0, 0, 5)]), 0.0, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4"]
