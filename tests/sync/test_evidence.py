"""From scores to an offset: by hand, from made-up scores whose truth is known, and from several faces."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from mtd_jax.sync.evidence import Scores, centred, estimate, pool
from tests.helpers.scores import made_up


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("offset", [-15, -7, -1, 0, 1, 4, 15])
def test_the_offset_is_found_with_its_sign(offset, every):
    found = estimate(made_up([offset] * (150 // every), every=every))
    assert found.offset_frames == offset and found.confidence > 0.99
    assert found.score == pytest.approx(3.0, abs=0.5)
    assert found.windows == pytest.approx(30)


def test_t_and_confidence_by_hand():
    """Four independent windows: the best offset leads one rival by 0, 0, 3 and 1, and the other by 10 more."""
    table = np.array([[0, -1, 0, -1, -10], [0, -1, 0, -1, -10], [0, -1, 3, -1, -10], [0, -1, 1, -1, -10]])
    found = estimate(Scores(5 * np.arange(4), table.astype(float), 5))
    lead = np.array([0, 0, 3, 1])
    total = float(((lead - 1) ** 2).sum())
    neighbours = 2 * (1 - 1 / 2) * float(((lead - 1)[1:] * (lead - 1)[:-1]).sum())
    t = 1 / (np.sqrt(max(total, total + neighbours)) / 4)
    assert found.offset_frames == 0 and found.t == pytest.approx(t)
    assert found.confidence == pytest.approx(1 - (2 * stats.t.cdf(-t, 3)) ** 1.5)


def test_windows_that_share_frames_count_once_in_five():
    dense, sparse = (estimate(made_up([3] * n, lead=0.4, every=e, seed=2)) for n, e in ((150, 1), (150, 5)))
    assert (dense.windows, sparse.windows) == (30, 150)
    assert dense.t < sparse.t


def test_noise_is_not_a_verdict():
    found = [estimate(made_up([0] * 30, lead=0.0, seed=seed, every=5)).confidence for seed in range(60)]
    assert np.mean(np.array(found) >= 0.9) <= 0.05 and np.median(found) < 0.7


def test_confidence_grows_with_evidence_and_ignores_scale_and_level():
    weak, strong, longer = (
        estimate(s) for s in (made_up([3] * 90, lead=1), made_up([3] * 90), made_up([3] * 400, lead=1))
    )
    assert 0 <= weak.confidence < strong.confidence <= 1 and weak.t < longer.t
    scores = made_up([3] * 90)
    other = dataclasses.replace(scores, table=scores.table * 10 - 4)
    assert estimate(other).t == pytest.approx(estimate(scores).t, rel=1e-3)


@pytest.mark.parametrize("other, sure", [(1, False), (2, True), (4, True), (5, False)])
def test_an_offset_nearly_as_good_leaves_doubt_unless_it_is_a_neighbour(other, sure):
    scores = made_up([3] * 150)
    scores.table[:, 15 - other] += 2.9
    found = estimate(scores)
    assert (found.confidence >= 0.9) == sure and found.offset_frames in (3, other)


@pytest.mark.parametrize("count", [1, 2, 10, 18])
def test_a_handful_of_windows_is_never_sure(count):
    """Too few windows see the offsets at the ends of the range for these to be ruled out."""
    assert estimate(made_up([0] * count, lead=50.0)).confidence == 0


def test_windows_without_audio_say_nothing():
    scores = made_up([2] * 90)
    scores.table[:30] = np.nan
    assert estimate(scores).offset_frames == 2 and estimate(scores).windows == pytest.approx(60 / 5)
    scores.table[:] = np.nan
    assert estimate(scores).confidence == 0


def test_listeners_do_not_outvote_whoever_speaks():
    """Two faces speak by turns, each a second; while one speaks, the other's mouth fits the audio nowhere."""
    turns = np.repeat(np.arange(6) % 2, 25)
    faces = [made_up([4] * 150, seed=seed) for seed in (1, 2)]
    for number, face in enumerate(faces):
        listening = turns != number
        face.table[listening] = np.random.default_rng(9 + number).normal(size=(75, 31)) - 2.0
    alone = [estimate(face) for face in faces]
    together = estimate(pool(faces))
    assert together.offset_frames == 4 and together.confidence > 0.99
    assert together.t > max(face.t for face in alone)


def test_faces_that_follow_each_other_are_one_film():
    whole = made_up([-6] * 150)
    parts = [whole.only(rows) for rows in np.array_split(np.arange(150), 6)]
    pooled = pool(parts[::-1])
    np.testing.assert_array_equal(pooled.starts, whole.starts)
    np.testing.assert_array_equal(pooled.table, whole.table)
    assert dataclasses.astuple(estimate(pooled)) == pytest.approx(dataclasses.astuple(estimate(whole)))
    assert all(estimate(part).confidence < 0.9 for part in (parts[0], parts[-1]))


def test_scores_that_move_are_straightened():
    offsets = np.rint(-3 + 0.5 * 5 * np.arange(60) / 25).astype(int)  # half a frame a second
    scores = made_up(offsets, every=5)
    moved = scores.moved(0.5)
    assert estimate(moved).offset_frames == -3
    assert estimate(moved, everywhere=False).confidence > 0.99 > estimate(scores).confidence
    assert estimate(moved).confidence == 0
    assert np.nanmean(centred(moved)[:, 18]) > 2
