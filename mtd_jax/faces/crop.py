"""From a face crop of any size to the network's picture of it."""

import cv2
import numpy as np

from mtd_jax.data.clip import FACE_SIZE


def crop_face(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Cuts a face out by its tight box, as in training: not padded, not made square, not smoothed over time.

    Args:
      picture: uint8 (height, width, 3), any channel order.
      box: x0, y0, x1, y1 in pixels, x1 and y1 exclusive; rounded, and cut at the picture's edges.

    Returns:
      uint8 (96, 96, 3), bilinear.
    """
    height, width = picture.shape[:2]
    left, right = _inside(box[0], box[2], width)
    top, bottom = _inside(box[1], box[3], height)
    return cv2.resize(picture[top:bottom, left:right], (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_LINEAR)


def _inside(low: float, high: float, size: int) -> tuple[int, int]:
    """A side of a box as whole pixels of the picture, at least one."""
    first = min(max(round(float(low)), 0), size - 1)
    return first, min(max(round(float(high)), first + 1), size)
