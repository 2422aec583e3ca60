"""Drawing windows: labels that tell the truth, windows that exist, silence and spacing."""

import collections
import itertools

import numpy as np
import pytest

from mtd_jax.data.clip import Clip, UnusableClip
from mtd_jax.data.sampling import Pairing, draw_grid, draw_reference, draw_spaced, window_rms
from mtd_jax.errors import UserError


def telling_clip(num_frames=40, *, extra_frames=0, silent=()):
    """Frame f is filled with f and its sound with ±(1000 + f), or ±f (near-silent) for f in `silent`."""
    count = num_frames + extra_frames
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 48, 96, 3))
    level = np.where(np.isin(np.arange(num_frames), list(silent)), 0, 1000) + np.arange(num_frames)
    sound = np.repeat(level, 640).astype(np.int16)
    sound[1::2] *= -1
    return Clip("telling", frames, sound[: num_frames * 640])


def picture_start(frames):
    """The frame a window starts at; its frames follow each other."""
    start = int(frames[0, 0, 0, 0])
    np.testing.assert_array_equal(frames[:, 0, 0, 0], start + np.arange(len(frames)))
    return start


def sound_start(audio):
    start = int(audio[0]) % 1000
    np.testing.assert_array_equal(np.abs(audio[::640]) % 1000, start + np.arange(len(audio) // 640))
    return start


def is_silent(audio):
    return np.sqrt(np.mean(np.square(audio / 32768))) <= 0.01


def test_reference_labels_say_whether_the_sound_belongs_to_the_picture():
    rng = np.random.default_rng(0)
    clip = telling_clip(12)
    starts, labels = collections.Counter(), []
    for _ in range(4000):
        frames, audio, label = draw_reference(rng, clip, 5)
        assert frames.shape == (5, 48, 96, 3) and audio.shape == (3200,)
        pair = picture_start(frames), sound_start(audio)
        assert label == float(pair[0] == pair[1])
        starts[pair] += 1
        labels.append(label)
    # Standard deviations: 0.008 of the mean; 22 of 250 draws per window in sync, 6 of 36 per pair out of sync.
    assert abs(np.mean(labels) - 0.5) < 0.04
    assert set(starts) == set(itertools.product(range(8), repeat=2))
    for (picture, sound), times in starts.items():
        expected, deviation = (250, 16) if picture == sound else (4000 / 2 / 56, 6)
        assert abs(times - expected) < 5 * deviation


def test_reference_windows_have_sound_where_there_are_more_pictures():
    rng = np.random.default_rng(1)
    clip = telling_clip(9, extra_frames=20)
    for _ in range(300):
        frames, audio, _ = draw_reference(rng, clip, 5)
        assert picture_start(frames) <= 4 and len(audio) == 3200


def test_reference_of_a_silent_window_is_paired_with_a_sounding_one():
    rng = np.random.default_rng(2)
    clip = telling_clip(40, silent=range(20))  # windows from 0 to 15 are all silence
    silent_true, silent_other = 0, 0
    for _ in range(600):
        frames, audio, label = draw_reference(rng, clip, 5)
        if label:
            continue
        if picture_start(frames) <= 15:
            silent_true += 1
            assert not is_silent(audio)
        else:
            silent_other += is_silent(audio)
    assert silent_true > 50 and silent_other > 20


def test_reference_of_a_silent_clip():
    rng = np.random.default_rng(3)
    clip = telling_clip(30, silent=range(30))
    outcomes = collections.Counter()
    for _ in range(100):
        try:
            outcomes[draw_reference(rng, clip, 5)[2]] += 1
        except UnusableClip as error:
            assert "telling: near-silent throughout" in str(error)
            outcomes["refused"] += 1
    assert outcomes[0.0] == 0 and outcomes[1.0] > 20 and outcomes["refused"] > 20


def test_reference_of_a_short_clip():
    rng = np.random.default_rng(4)
    with pytest.raises(UnusableClip, match="5 frames, expected at least 6"):
        draw_reference(rng, telling_clip(5), 5)
    assert {picture_start(draw_reference(rng, telling_clip(6), 5)[0]) for _ in range(50)} == {0, 1}


def test_window_rms_and_the_limit_of_silence():
    sound = np.zeros(8 * 640, np.int16)
    sound[640:1280] = 16384
    sound[5 * 640 :: 2] = 300
    rms = window_rms(Clip("c", np.zeros((8, 48, 96, 3), np.uint8), sound), 2)
    expected = [0.5 / np.sqrt(2), 0.5 / np.sqrt(2), 0, 0, 300 / 32768 / 2, 300 / 32768 / np.sqrt(2)]
    np.testing.assert_allclose(rms, [*expected, expected[-1]], atol=1e-12)
    rng = np.random.default_rng(0)
    frames = np.zeros((10, 48, 96, 3), np.uint8)
    below, above = (Clip("c", frames, np.full(6400, level, np.int16)) for level in (327, 328))
    with pytest.raises(UnusableClip, match="near-silent"):  # 327 / 32768 < 0.01 < 328 / 32768
        [draw_reference(rng, below, 5) for _ in range(60)]
    assert len([draw_reference(rng, above, 5) for _ in range(60)]) == 60


@pytest.mark.parametrize("windows, gap", [(8, 1), (8, 4), (3, 10), (1, 7)])
def test_grid_windows_are_spaced_and_paired_in_order(windows, gap):
    rng = np.random.default_rng(5)
    clip = telling_clip(40)
    seen = set()
    for _ in range(200):
        frames, audio, labels = draw_grid(rng, clip, 5, windows, gap)
        assert frames.shape == (windows, 5, 48, 96, 3) and audio.shape == (windows, 3200)
        np.testing.assert_array_equal(labels, np.eye(windows))
        starts = [picture_start(window) for window in frames]
        assert starts == [sound_start(window) for window in audio]
        assert all(second - first >= gap for first, second in itertools.pairwise(starts))
        assert starts[-1] <= 35
        seen.update(starts)
    assert {0, 35} <= seen


def test_grid_needs_room():
    rng = np.random.default_rng(6)
    assert [picture_start(w) for w in draw_grid(rng, telling_clip(26), 5, 4, 7)[0]] == [0, 7, 14, 21]
    with pytest.raises(UnusableClip, match="25 frames, expected at least 26"):
        draw_grid(rng, telling_clip(25), 5, 4, 7)
    with pytest.raises(UnusableClip):
        draw_grid(rng, telling_clip(3), 5, 1, 1)


def test_grid_avoids_silence_where_it_can():
    rng = np.random.default_rng(7)
    for _ in range(100):
        audio = draw_grid(rng, telling_clip(60, silent=range(10, 50)), 5, 4, 2)[1]
        assert not any(is_silent(window) for window in audio)
    # Sound reaches the windows from 26 to 35 only: of four windows 9 frames apart, two can hear it in one way.
    for _ in range(100):
        audio = draw_grid(rng, telling_clip(60, silent=set(range(60)) - set(range(30, 36))), 5, 4, 9)[1]
        assert sum(is_silent(window) for window in audio) == 2
    audio = draw_grid(rng, telling_clip(60, silent=range(60)), 5, 4, 2)[1]
    assert len(audio) == 4


def test_spaced_sets_are_drawn_in_proportion_to_their_weight():
    rng = np.random.default_rng(8)
    weights = np.array([1.0, 2.0, 1.0, 3.0, 1.0, 0.5])
    sets = [s for s in itertools.combinations(range(6), 3) if s[1] - s[0] >= 2 and s[2] - s[1] >= 2]
    odds = np.array([np.prod(weights[list(s)]) for s in sets])
    drawn = collections.Counter(tuple(draw_spaced(rng, weights, 3, 2)) for _ in range(8000))
    assert set(drawn) == set(sets)
    expected = 8000 * odds / odds.sum()
    assert np.all(np.abs([drawn[s] for s in sets] - expected) < 5 * np.sqrt(expected))


def test_spaced_sets_of_many_tiny_weights():
    picks = draw_spaced(np.random.default_rng(9), np.full(400, 1e-8), 100, 3)
    assert len(picks) == 100 and np.diff(picks).min() >= 3
    assert draw_spaced(np.random.default_rng(9), np.ones(297), 100, 3) is None


def test_draws_repeat_with_the_generator():
    clip = telling_clip()
    for pairing in (Pairing("reference"), Pairing("grid", windows=4, min_gap=3)):
        first, again = (pairing.draw(np.random.default_rng([4, 2]), clip) for _ in range(2))
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)


def test_pairings_have_one_form():
    rng = np.random.default_rng(10)
    frames, audio, labels = Pairing("reference", window_frames=25).draw(rng, telling_clip(30))
    assert (frames.shape, audio.shape) == ((1, 25, 48, 96, 3), (1, 25 * 640))
    assert (labels.shape, labels.dtype) == ((1, 1), np.float32)
    assert Pairing("reference").windows_per_example == 1 and Pairing("reference").min_frames == 6
    grid = Pairing("grid", windows=4, min_gap=7)
    assert grid.windows_per_example == 4
    assert grid.draw(rng, telling_clip(grid.min_frames))[2].dtype == np.float32
    with pytest.raises(UnusableClip):
        grid.draw(rng, telling_clip(grid.min_frames - 1))


@pytest.mark.parametrize("wrong", [{"kind": "triplet"}, {"window_frames": 0}, {"windows": 0}, {"min_gap": 0}])
def test_pairings_that_make_no_sense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Pairing(**{"kind": "grid", **wrong})


def test_only_the_window_is_read():
    asked = []

    class Recorder:
        def __init__(self, track):
            self.track = track

        def __len__(self):
            return len(self.track)

        def __getitem__(self, window):
            asked.append(window)
            return self.track[window]

    clip = telling_clip()
    draw_reference(np.random.default_rng(0), Clip("r", Recorder(clip.frames), Recorder(clip.waveform)), 5)
    assert 2 <= len(asked) <= 3
    assert {window.stop - window.start for window in asked} == {5, 3200}
