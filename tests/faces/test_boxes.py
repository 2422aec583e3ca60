"""Face boxes of the user's own."""

import json
import math

import pytest

from mtd_jax.errors import UserError
from mtd_jax.faces.boxes import WHOLE_FRAME, FaceBox, covers, inside, read_boxes, track_of_box
from mtd_jax.faces.search import face_source


@pytest.fixture
def boxes_file(tmp_path):
    def write(content):
        path = tmp_path / "boxes.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1, 2, 30, 40.5], [FaceBox((1, 2, 30, 40.5))]),
        ({"box": [1, 2, 30, 40]}, [FaceBox((1, 2, 30, 40), 0, math.inf)]),
        ({"box": [77, 62, 179, 190], "audio_delay_samples": 0}, [FaceBox((77, 62, 179, 190))]),
        (
            [{"box": [1, 2, 30, 40], "end_seconds": 2}, {"box": [5, 2, 30, 40], "start_seconds": 2.5}],
            [FaceBox((1, 2, 30, 40), 0, 2), FaceBox((5, 2, 30, 40), 2.5, math.inf)],
        ),
    ],
)
def test_formats(boxes_file, content, expected):
    assert read_boxes(boxes_file(content)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ([], "expected"),
        ("3", "expected"),
        ([[1, 2, 3]], "entry 1: expected"),
        ([{"box": [1, 2, 30, 40]}, {"bocks": 1}], "entry 2: expected"),
        ({"box": [1, 2, 30, "40"]}, "entry 1: expected"),
        ({"box": [30, 2, 1, 40]}, "x0 < x1"),
        ({"box": [1, 2, 30, 40], "end": 3}, "unknown end"),
        ({"box": [1, 2, 30, 40], "start_seconds": 3, "end_seconds": 2}, "start_seconds < end_seconds"),
        ({"box": [1, 2, 30, 40], "start_seconds": "now"}, "start_seconds < end_seconds"),
        ({"box": [1, 2, 30, 40], "start_seconds": True}, "start_seconds < end_seconds"),
        ({"box": [1, 2, 30, 40], "start_seconds": math.nan}, "start_seconds < end_seconds"),
        ([True, False, 30, 40], "entry 1: expected"),
        ("[1e400, 2, 30, 40]", "entry 1: expected"),
    ],
)
def test_faults_name_the_entry(boxes_file, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_boxes(boxes_file(content))
    assert "boxes.json" in str(caught.value) and len(str(caught.value)) < 400


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="missing.json"):
        read_boxes(tmp_path / "missing.json")


def test_boxes_become_tracks_of_the_video():
    faces = [FaceBox((-5, 10, 50, 300)), FaceBox((0, 0, 20, 20), 1.0, 2.0)]
    tracks = [track_of_box(face, inside(face, 200, 100), 0, 75) for face in [*faces, *WHOLE_FRAME]]
    assert [(t.start, t.end, t.box) for t in tracks] == [
        (0, 75, (0, 10, 50, 200)),
        (25, 50, (0, 0, 20, 20)),
        (0, 75, (0, 0, 100, 200)),
    ]


@pytest.mark.parametrize(
    ("face", "message"),
    [
        (FaceBox((100, 0, 150, 50)), r"\[100, 0, 150, 50\] is outside the 100×200 frame"),
        (FaceBox((0, 0, 9, 9), 3.0), "from 3 s to its end is outside the video of 3.00 s"),
        (FaceBox((0, 0, 9, 9), 4.0, 5.5), "from 4 s to 5.5 s is outside"),
    ],
)
def test_boxes_outside_the_video_are_refused(face, message):
    with pytest.raises(UserError, match=message):
        track_of_box(face, inside(face, 200, 100), 0, 75)


def test_a_track_is_in_the_frames_that_its_box_covers():
    for face in (FaceBox(None), FaceBox(None, 1.01, 2.03), FaceBox(None, 0.5)):
        track = track_of_box(face, inside(face, 200, 100), 0, 75)
        assert [k for k in range(75) if covers(face, k)] == list(range(track.start, track.end))


def test_sources_of_faces_by_name(boxes_file):
    assert face_source("whole") == [FaceBox(None)]
    assert face_source(str(boxes_file([1, 2, 30, 40]))) == [FaceBox((1, 2, 30, 40))]
    with pytest.raises(UserError, match='expected "mtcnn", "whole"'):
        face_source("haar")
