"""A face detector from an ONNX file, run by OpenCV.

Expected of the model (the convention of the public UltraFace models, "Ultra-Light-Fast-Generic-Face-Detector"):

- one input, float32 (1, 3, height, width), fixed size: RGB, (value − 127) / 128;
- outputs `scores` (1, n, 2): background and face, each in [0, 1]; `boxes` (1, n, 4): x0, y0, x1, y1 as shares of
  the picture's width and height.

Candidates are thinned out here (score ≥ 0.7, overlaps of IoU > 0.3): the model needs no suppression of its own.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mtd_jax.errors import UserError
from mtd_jax.media.faces import clip_boxes

_MIN_SCORE = 0.7
_MAX_OVERLAP = 0.3


class OnnxDetector:
    """See the module's text.

    Raises:
      UserError: the file is missing, no ONNX model, or one of another shape.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected a face detector in ONNX format")
        try:
            self._height, self._width = _input_size(path.read_bytes())
            self._network = cv2.dnn.readNetFromONNX(str(path))
        except (cv2.error, ValueError, IndexError) as error:
            raise UserError(f"{path}: not an ONNX model with a fixed (1, 3, height, width) input") from error
        self._path = path
        self.detect([np.zeros((self._height, self._width, 3), np.uint8)])

    def detect(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._detect_one(frame) for frame in frames]

    def _detect_one(self, frame: np.ndarray) -> np.ndarray:
        size = self._width, self._height
        self._network.setInput(cv2.dnn.blobFromImage(frame, 1 / 128, size, (127, 127, 127), swapRB=False))
        try:
            scores, boxes = self._network.forward(["scores", "boxes"])
        except cv2.error as error:
            raise UserError(f"{self._path}: expected outputs `scores` and `boxes` ({error.err})") from error
        if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.shape != (*boxes.shape[:2], 2):
            got = f"{scores.shape} and {boxes.shape}"
            raise UserError(f"{self._path}: expected scores (1, n, 2) and boxes (1, n, 4), got {got}")
        height, width = frame.shape[:2]
        faces = scores[0, :, 1] >= _MIN_SCORE
        corners = boxes[0, faces] * np.array([width, height, width, height], np.float32)
        found = np.concatenate([corners, scores[0, faces, 1:]], axis=1).astype(np.float32)
        return clip_boxes(suppress(found), height, width)


def suppress(found: np.ndarray) -> np.ndarray:
    """Of candidates (n, 5) that overlap, the one with the best score."""
    sizes = np.concatenate([found[:, :2], found[:, 2:4] - found[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxes(sizes.tolist(), found[:, 4].tolist(), 0.0, _MAX_OVERLAP)
    return found[np.array(kept, int).reshape(-1)]


def _input_size(model: bytes) -> tuple[int, int]:
    """Height and width of the model's first input; OpenCV doesn't tell them.

    The numbers are those of the fields in onnx.proto: ModelProto.graph = 7, GraphProto.input = 11,
    ValueInfoProto.type = 2, TypeProto.tensor_type = 1, its shape = 2, TensorShapeProto.dim = 1, its dim_value = 1.
    """
    part = model
    for number in (7, 11, 2, 1, 2):
        part = _fields(part, number)[0]
    sides = [_fields(dimension, 1)[0] for dimension in _fields(part, 1)]
    if len(sides) != 4 or sides[1] != 3 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(sides)
    return sides[2], sides[3]


def _fields(message: bytes, wanted: int) -> list:
    """The values of one field of a protobuf message: bytes, or int for numbers. IndexError if it is cut off."""
    values, place = [], 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
            if byte < 128:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            value = varint()
        else:
            length = {1: 8, 5: 4}[kind] if kind in (1, 5) else varint()
            value = message[place : place + length]
            place += length
        if number == wanted:
            values.append(value)
    return values
