"""Verdicts from made-up scores, whose truth is known."""

import numpy as np
import pytest

from mtd_jax.sync.verdict import best_offset, judge, material_warnings, words
from tests.helpers.scores import made_up


@pytest.mark.parametrize("offset", [-15, -7, -1, 0, 1, 4, 15])
def test_the_offset_is_found_with_its_sign(offset):
    verdict = judge(made_up([offset] * 150), start_seconds=2.0)
    assert (verdict.offset_frames, verdict.offset_seconds) == (offset, offset / 25)
    assert verdict.in_sync == (abs(offset) <= 1)
    assert verdict.is_sure and not verdict.drifts and verdict.max_shift == 15
    assert {segment.offset_frames for segment in verdict.segments} == {offset}
    assert verdict.score == pytest.approx(3.0, abs=0.4)
    assert [w.start_seconds for w in verdict.windows] == pytest.approx(2.0 + np.arange(15, 135) / 25)
    assert np.mean([w.offset_frames == offset for w in verdict.windows]) > 0.95
    assert any("edge of the range" in line for line in verdict.warnings) == (abs(offset) == 15)
    if abs(offset) < 15:
        assert verdict.warnings == []


def test_noise_is_not_a_verdict():
    confidences = [judge(made_up([0] * 150, lead=0.0, seed=seed)).confidence for seed in range(40)]
    assert max(confidences) < 0.9 and np.median(confidences) < 0.5
    assert any("low confidence" in line for line in judge(made_up([0] * 150, lead=0.0)).warnings)


def test_confidence_grows_with_evidence_and_ignores_scale_and_level():
    weak, strong, longer = (
        judge(s) for s in (made_up([3] * 90, lead=1), made_up([3] * 90), made_up([3] * 400, lead=1))
    )
    assert 0 <= weak.confidence < strong.confidence <= 1 and weak.z < longer.z
    scores = made_up([3] * 90)
    assert judge(scores * 10 - 4).z == pytest.approx(judge(scores).z, rel=1e-3)


def test_z_by_hand():
    """Three windows: the best offset leads one rival by 0, 0 and 3, mean 1, and the other by 10 more."""
    scores = np.array([[0, -1, 0, -1, -10], [0, -1, 0, -1, -10], [0, -1, 3, -1, -10]], np.float64)
    offset, z = best_offset(scores)
    error = np.sqrt(5 * (1 + 1 + 4)) / 3  # as if one window in five were independent
    assert offset == 0 and z == pytest.approx(1 / error)


@pytest.mark.parametrize("other, sure", [(1, False), (2, True), (4, True), (5, False)])
def test_an_offset_nearly_as_good_leaves_doubt_unless_it_is_a_neighbour(other, sure):
    scores = made_up([3] * 150)
    scores[:, 15 - other] += 2.9
    verdict = judge(scores)
    assert verdict.is_sure == sure and verdict.offset_frames in (3, other)


def test_an_edit_shows_as_drift_and_where():
    verdict = judge(made_up([0] * 300 + [6] * 300))
    assert verdict.drifts
    offsets = [segment.offset_frames for segment in verdict.segments]
    assert set(offsets) <= {0, 6} and offsets == sorted(offsets)
    change = next(s.start_seconds for s in verdict.segments if s.offset_frames == 6)
    assert abs(change - 12) < 3.5
    assert "+0 from 0.6 s, +6 from" in " ".join(verdict.warnings)
    assert "changes" in verdict.summary


def test_a_frame_more_or_less_is_no_drift():
    assert not judge(made_up([0] * 300 + [1] * 300)).drifts


@pytest.mark.parametrize("count, reach", [(1, 0), (2, 0), (20, 7), (40, 13), (45, 15), (300, 15)])
def test_short_tracks_are_judged_on_fewer_offsets_and_say_so(count, reach):
    verdict = judge(made_up([0] * count))
    assert verdict.max_shift == reach and verdict.offset_frames == 0
    assert any("short" in line for line in verdict.warnings) == (reach < 15)
    assert len(verdict.windows) == count - 2 * reach
    if reach == 0:
        assert verdict.confidence == 0


def test_words_and_warnings_about_the_material():
    assert words(4) == "the audio is early by 160 ms (4 frames)"
    assert words(-1) == "the audio is late by 40 ms (1 frame)"
    assert words(0) == "audio and video are in sync"
    assert material_warnings(3.0, 0.1) == []
    silent, still = material_warnings(0.0, 0.0)
    assert "silent" in silent and "hardly moves" in still
    assert "nearly silent (-60 dBFS" in material_warnings(3.0, 0.001)[0]
