"""Linking face boxes to tracks, on boxes with known answers."""

import numpy as np
import pytest

from mtd_jax.faces.tracks import FaceTrack, LinkSettings, faceless, iou, largest
from tests.helpers.tracks import link

SETTINGS = LinkSettings(min_iou=0.3, max_gap=15, min_frames=10)
NONE = np.zeros((0, 5), np.float32)


def found(*boxes):
    return np.array([[*box, 0.99] for box in boxes], np.float32)


def square(x, y=0, size=100):
    return (x, y, x + size, y + size)


def spans(tracks):
    return [(track.start, track.end) for track in tracks]


def test_frames_between_detections_get_boxes_on_a_straight_line():
    detections = {frame: found((frame, 2 * frame, 100 + frame, 100 + 3 * frame)) for frame in (0, 5, 12, 20)}
    (track,), dropped = link(detections, [], SETTINGS)
    frames = np.arange(21)
    expected = np.stack([frames, 2 * frames, 100 + frames, 100 + 3 * frames], axis=1)
    np.testing.assert_allclose(track.boxes, expected, atol=1e-4)
    assert spans([track]) == [(0, 21)] and dropped == [] and track.boxes.dtype == np.float32
    assert track.box == (10, 20, 110, 130)


def test_two_faces_are_two_tracks_whatever_their_order():
    detections = {k: found(square(0 + k), square(300 - k)) for k in range(0, 30, 10)}
    detections |= {k: found(square(300 - k), square(0 + k)) for k in range(5, 30, 10)}
    tracks, _ = link(detections, [], SETTINGS)
    assert spans(tracks) == [(0, 26), (0, 26)]
    assert [track.boxes[-1, 0] for track in tracks] == [25, 275]


def test_the_best_overlap_is_joined_first():
    # The first box found overlaps the track a little, the second much more.
    detections = {0: found(square(0)), 5: found(square(50), square(10)), 10: found(square(10), square(50))}
    tracks, dropped = link(detections, [], LinkSettings(min_frames=6))
    assert spans(tracks) == [(0, 11), (5, 11)]
    assert [track.boxes[-1, 0] for track in tracks] == [10, 50]


@pytest.mark.parametrize(("gap", "expected"), [(15, [(0, 35)]), (16, [(0, 11), (26, 36)])])
def test_short_gaps_are_bridged_and_long_ones_are_not(gap, expected):
    seen = [0, 5, 10, 10 + gap, 15 + gap, 19 + gap]
    detections = {frame: found(square(0)) if frame in seen else NONE for frame in range(60)}
    tracks, _ = link(detections, [], SETTINGS)
    assert spans(tracks) == expected
    assert np.all(tracks[0].boxes == square(0))


def test_a_cut_ends_a_track_even_where_the_next_face_is_in_its_place():
    detections = {frame: found(square(0)) for frame in (0, 5, 10, 12, 13, 18, 23, 25)}
    tracks, _ = link(detections, [13], SETTINGS)
    assert spans(tracks) == [(0, 13), (13, 26)]


def test_a_jump_of_the_box_is_another_face():
    detections = {frame: found(square(0 if frame < 20 else 80)) for frame in range(0, 40, 5)}
    tracks, _ = link(detections, [], SETTINGS)
    assert spans(tracks) == [(0, 16), (20, 36)]


def test_short_tracks_are_dropped_with_a_reason():
    detections = {frame: found(square(0)) for frame in range(0, 40, 5)}
    detections[10] = found(square(0), square(400))
    tracks, dropped = link(detections, [], SETTINGS)
    assert spans(tracks) == [(0, 36)]
    assert [(d.start, d.end, d.reason) for d in dropped] == [(10, 11, "seen for 0.04 s, less than 0.4 s")]


def test_no_more_faces_are_followed_at_once_than_asked_for():
    """The largest first; later only one that is much larger takes the place of another."""
    small, middle, large, huge = (
        square(0, size=40),
        square(200, size=60),
        square(400, size=70),
        square(700, size=80),
    )
    detections = {k: found(small, middle, large, *([huge] if k >= 30 else [])) for k in range(0, 60, 5)}
    tracks, _ = link(detections, [], SETTINGS, at_once=2)
    assert [(t.start, t.end, t.boxes[0, 0]) for t in tracks] == [(0, 31, 200), (0, 56, 400), (30, 56, 700)]
    detections = {k: found(small, middle, *([large] if k >= 30 else [])) for k in range(0, 60, 5)}
    tracks, _ = link(detections, [], SETTINGS, at_once=1)
    assert [(t.start, t.end, t.boxes[0, 0]) for t in tracks] == [(0, 56, 200)]
    assert len(link(detections, [], SETTINGS)[0]) == 3


def test_nothing_found():
    assert link({0: NONE, 5: NONE}, [], SETTINGS) == ([], [])
    assert link({}, [], SETTINGS) == ([], [])


def test_iou():
    a = np.array([square(0), square(1000)], float)
    b = np.array([square(0), square(50), (0, 0, 50, 50), (0, 0, 0, 0)], float)
    np.testing.assert_allclose(iou(a, b), [[1, 1 / 3, 1 / 4, 0], [0, 0, 0, 0]], atol=1e-6)


def test_faceless_stretches_are_what_no_track_covers():
    tracks = [FaceTrack(start, np.zeros((end - start, 4))) for start, end in [(30, 50), (10, 20), (12, 15)]]
    assert faceless(tracks, 0, 60) == [(0, 10), (20, 30), (50, 60)]
    assert faceless(tracks, 0, 50) == [(0, 10), (20, 30)]
    assert faceless([], 0, 7) == [(0, 7)]
    assert faceless([FaceTrack(0, np.zeros((7, 4)))], 0, 7) == []


@pytest.mark.parametrize("at_once, dropped", [(1, [(40, 90)]), (2, [(40, 80)]), (3, [])])
def test_only_long_overlaps_with_larger_faces_are_left_out(at_once, dropped):
    def track(start, end, side):
        return FaceTrack(start, np.tile([0, 0, side, side], (end - start, 1)).astype(np.float32))

    large, beside, mostly_after = track(0, 100, 50), track(40, 90, 30), track(80, 160, 20)
    tracks = [beside, mostly_after, large] + ([track(40, 80, 10)] if at_once > 1 else [])
    kept, left_out = largest(tracks, at_once)
    assert [(d.start, d.end) for d in left_out] == dropped
    assert len(kept) + len(left_out) == len(tracks) and kept[0] is large
