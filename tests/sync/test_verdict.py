"""Verdicts from made-up scores, whose truth is known."""

import numpy as np
import pytest

from mtd_jax.sync.evidence import Estimate, estimate
from mtd_jax.sync.reasons import doubts, pauses
from mtd_jax.sync.verdict import Course, Result, course_of, rate_words, words
from tests.helpers.scores import made_up
from tests.helpers.videos import noise

SOUND = np.concatenate([noise(0.4), np.zeros(4800, np.int16)] * 10)


def course(scores):
    return course_of(scores, {}, 5)


def result(scores):
    whole, found = estimate(scores), course(scores)
    return Result("a.mp4", whole.offset_frames, whole.offset_frames / 25, None, whole.confidence, found, [], 0, [])


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize(
    "offset, verdict", [(0, "in_sync"), (-1, "in_sync"), (2, "out_of_sync"), (-9, "out_of_sync")]
)
def test_a_constant_offset(offset, verdict, every):
    found = result(made_up([offset] * (600 // every), every=every))
    assert (found.verdict, found.offset_frames) == (verdict, offset)
    assert found.course.is_constant and {segment.offset_frames for segment in found.segments} == {offset}
    assert found.segments[0].start_seconds == 0
    assert found.segments[-1].end_seconds == pytest.approx((600 - every + 5) / 25)


def test_noise_is_unknown_and_never_in_sync():
    found = result(made_up([0] * 300, lead=0.0))
    assert found.verdict == "unknown" and found.summary.startswith("cannot tell")
    assert found.meets("ebu") is None


@pytest.mark.parametrize("every", [1, 5])
def test_an_edit_shows_and_where(every):
    scores = made_up([0] * (300 // every) + [6] * (310 // every), every=every)
    found = result(scores)
    assert found.verdict == "drifting" and found.course.rate is None
    ((start, end, before, after),) = found.course.jumps
    assert (before, after) == (0, 6)
    assert start == pytest.approx(12, abs=0.5) and end == pytest.approx(12, abs=0.5)
    assert "changes" in found.summary
    (line,) = doubts(estimate(scores), found.course, 15, None, [3.0], SOUND, 6.0)
    assert "an edit at 1" in line and "6 frames" in line


def test_an_edit_between_samples_is_located_by_its_neighbours():
    before, after = made_up([-4] * 20, every=5), made_up([3] * 20, every=5, seed=1, start=2000)
    scores = before.__class__(
        np.concatenate([before.starts, after.starts]), np.concatenate([before.table, after.table]), 5
    )
    ((start, end, *_),) = course(scores).jumps
    assert start == pytest.approx(95 / 25) and end == pytest.approx(80)


def test_an_edit_shows_where_single_pieces_say_little():
    scores = made_up([0] * 90 + [9] * 90, lead=0.8, every=5, seed=1)
    assert {s.offset_frames for s in course(scores).segments[6:] if s.confidence >= 0.999} == set()
    ((start, end, before, after),) = course(scores).jumps
    assert (before, after) == (0, 9) and start == pytest.approx(18, abs=3) and end == pytest.approx(18, abs=3)


def test_one_piece_that_is_wrong_is_no_edit():
    scores = made_up([0] * 300 + [8] * 40 + [0] * 300, lead=1.2)
    assert result(scores).verdict == "in_sync"


def test_a_frame_more_or_less_is_no_drift():
    assert course(made_up([0] * 300 + [1] * 300)).is_constant


@pytest.mark.parametrize("rate", [0.01, -0.004])
def test_a_clock_that_drifts_has_a_rate(rate):
    frames = 5 * np.arange(200)
    scores = made_up(np.rint(-2 + rate * frames).astype(int), every=5)
    found = result(scores)
    assert found.verdict == "drifting" and found.course.jumps == []
    assert found.course.rate == pytest.approx(rate, rel=0.15)
    assert "drifts" in found.summary and ("fast" if rate > 0 else "slow") in found.summary


def test_a_fast_drift_whose_neighbouring_pieces_are_frames_apart():
    """Each piece is sure of an offset of its own, none beyond doubt or as its neighbour is."""
    frames = 5 * np.arange(100)
    offsets = np.rint(5 - frames / 25).astype(int)
    found = course(made_up(np.clip(offsets, -15, 15), every=5, lead=4.0))
    assert found.rate == pytest.approx(-1 / 25, rel=0.1) and "25 to 24 frames" in rate_words(found.rate)


def test_a_film_at_another_frame_rate_is_named():
    frames = 5 * np.arange(60)
    offsets = np.clip(np.rint(frames / 24).astype(int), -15, 15)
    found = course(made_up(offsets, every=5))
    assert found.rate == pytest.approx(1 / 24, rel=0.1)
    assert "24 to 25 frames" in rate_words(found.rate)
    assert "1001" in rate_words(0.001) and "conversion" not in rate_words(0.0005)


@pytest.mark.parametrize(
    "standard, early, late", [("atsc", 0.015, 0.045), ("ebu", 0.040, 0.060), ("itu", 0.090, 0.185)]
)
def test_published_tolerances(standard, early, late):
    sure = result(made_up([0] * 300))
    for seconds, met in ((early, True), (early + 0.001, False), (-late, True), (-late - 0.001, False)):
        moved = Result("a", 0, seconds, 0.002, 1.0, sure.course, [], 0, [])
        assert moved.meets(standard) == met


def test_words():
    assert words(0.16) == "the audio is early by 160 ms (4 frames)"
    assert words(-0.04) == "the audio is late by 40 ms (1 frame)"
    assert words(-0.358) == "the audio is late by 358 ms (8.9 frames)"
    assert words(0.0) == "audio and video are in sync"


UNSURE = Estimate(3, 0.4, 0.5, -1.0, 30.0, 28.0)
CONSTANT = Course([], None, [])


@pytest.mark.parametrize(
    "found, wide, motion, audio, said",
    [
        (UNSURE, None, 3.0, SOUND, "the voice fits no face"),
        (Estimate(3, 0.899, 1.3, 1.0, 14.0, 13.0), None, 3.0, SOUND, "confidence 0.89 of 0.90; a longer film"),
        (Estimate(3, 0.899, 1.3, 1.0, 90.0, 88.0), None, 3.0, SOUND, "confidence 0.89 of 0.90; picture or sound"),
        (UNSURE, 40, 3.0, SOUND, "--max_shift=55"),
        (UNSURE, None, 3.0, SOUND * 0, "silent"),
        (UNSURE, None, 3.0, SOUND // 2000, "nearly silent"),
        (UNSURE, None, 0.1, SOUND, "hardly moves"),
        (UNSURE, None, 3.0, noise(8.0), "no pauses"),
        (Estimate(3, 0.0, 0.0, -1.0, 4.0, 2.0), None, 3.0, SOUND, "too little to compare"),
        (Estimate(3, 1.0, 9.0, 2.0, 30.0, 28.0), None, 3.0, SOUND[:48_000], "the audio ends at 3.0 s of 6.0 s"),
        (Estimate(15, 1.0, 9.0, 2.0, 30.0, 28.0), None, 3.0, SOUND, "edge of the range"),
    ],
)
def test_doubts_name_their_reason(found, wide, motion, audio, said):
    (line,) = doubts(found, CONSTANT, 15, wide, [motion], audio, 6.0)
    assert said in line


def test_a_better_offset_outside_of_the_range_is_named():
    found = Estimate(-15, 0.0, 9.0, 2.0, 30.0, 28.0)
    (line,) = doubts(found, CONSTANT, 15, None, [3.0], SOUND, 6.0, better=-30)
    assert "audio is late by 1200 ms (30 frames)" in line and line.endswith("try --max_shift=45")


def test_no_doubts_where_there_are_none():
    assert doubts(Estimate(3, 1.0, 9.0, 2.0, 30.0, 28.0), CONSTANT, 15, None, [3.0], SOUND, 6.0) == []
    assert pauses(SOUND) > 0.2 > pauses(noise(8.0))
