"""MTCNN on synthetic portraits, and the crop."""

import cv2
import numpy as np
import pytest

from mtd_jax.data.folder import lower_face
from mtd_jax.faces.crop import crop_face
from mtd_jax.faces.detect import Mtcnn, clip_boxes
from mtd_jax.faces.tracks import iou
from mtd_jax.synthetic.clips import portrait, record


@pytest.fixture(scope="module")
def mtcnn():
    return Mtcnn()


@pytest.fixture(scope="module")
def portraits():
    films = [portrait(record(0, speaker, 0, 0.04)) for speaker in range(4)]
    return [film[0] for film, _ in films], np.array([box for _, box in films], float)


def test_mtcnn_finds_each_portrait_once(mtcnn, portraits):
    pictures, boxes = portraits
    found = mtcnn.detect(pictures)
    assert [len(faces) for faces in found] == [1, 1, 1, 1]
    for faces, box in zip(found, boxes, strict=True):
        assert faces.dtype == np.float32 and faces[0, 4] > 0.95
        assert iou(faces[:, :4], box[None])[0, 0] > 0.6


def test_mtcnn_boxes_of_large_pictures_are_in_their_own_pixels(mtcnn, portraits):
    pictures, boxes = portraits
    large = np.full((1200, 1600, 3), 90, np.uint8)
    large[100:1124, 500:1524] = cv2.resize(pictures[0], (1024, 1024))
    (faces,) = mtcnn.detect([large])
    assert iou(faces[:, :4], boxes[:1] * 4 + [500, 100, 500, 100])[0, 0] > 0.6


def test_mtcnn_finds_two_faces_and_leaves_empty_and_tiny_pictures_empty(mtcnn, portraits):
    both = np.concatenate(portraits[0][:2], axis=1)
    pictures = [both, np.full((200, 300, 3), 120, np.uint8), np.zeros((5, 9, 3), np.uint8)]
    assert [faces.shape for faces in mtcnn.detect(pictures)] == [(2, 5), (0, 5), (0, 5)]


def test_boxes_are_cut_at_the_edges():
    sides = [[-5, -5, 20, 20, 1], [90, 40, 130, 60, 1], [99, 0, 120, 50, 1], [-9, 0, -1, 9, 1]]
    boxes = np.array(sides, np.float32)
    np.testing.assert_array_equal(clip_boxes(boxes, 50, 100), [[0, 0, 20, 20, 1], [90, 40, 100, 50, 1]])


def test_the_crop_is_the_tight_box(portraits):
    picture = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    np.testing.assert_array_equal(crop_face(picture, np.array([10, 20, 106, 116])), picture[20:116, 10:106])
    rounded = crop_face(picture, np.array([9.6, 20.4, 106.4, 115.6]))
    np.testing.assert_array_equal(rounded, picture[20:116, 10:106])
    other = crop_face(picture, np.array([30, 10, 80, 130]))
    np.testing.assert_array_equal(other, cv2.resize(picture[10:130, 30:80], (96, 96)))
    np.testing.assert_array_equal(lower_face(other), other[48:])
    np.testing.assert_array_equal(lower_face(picture[10:130, 30:80]), other[48:])


@pytest.mark.parametrize(
    "box", [(-50, -20, 30, 40), (190, 140, 900, 900), (300, 300, 310, 310), (5.2, 5.2, 5.4, 5.4)]
)
def test_a_crop_at_or_beyond_the_edge_is_what_is_left(box):
    picture = np.full((150, 200, 3), 7, np.uint8)
    assert np.all(crop_face(picture, np.array(box)) == np.full((96, 96, 3), 7))
