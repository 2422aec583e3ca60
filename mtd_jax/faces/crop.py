"""Crops faces out of frames, as the network expects them."""

import cv2
import numpy as np

from mtd_jax.data.clip import FACE_SIZE


def crop_face(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Crops a face by its tight box, as in training: no padding, no squaring, no smoothing over time.

    See docs/method.md, section 1.

    Args:
      frame: uint8 (height, width, 3), any channel order.
      box: x0, y0, x1, y1 in pixels, x1 and y1 exclusive; rounded and clipped to the frame.

    Returns:
      uint8 (96, 96, 3), resized bilinearly.
    """
    height, width = frame.shape[:2]
    left, right = _inside(box[0], box[2], width)
    top, bottom = _inside(box[1], box[3], height)
    return cv2.resize(frame[top:bottom, left:right], (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_LINEAR)


def scaled_box(box: np.ndarray, scale: float) -> np.ndarray:
    """The box (x0, y0, x1, y1) with its sides times `scale`, around the same centre."""
    if scale == 1:
        return box
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return np.concatenate([centre - scale * half, centre + scale * half])


def _inside(low: float, high: float, size: int) -> tuple[int, int]:
    """One axis of a box, rounded to whole pixels inside the frame; at least one pixel long."""
    first = min(max(round(float(low)), 0), size - 1)
    return first, min(max(round(float(high)), first + 1), size)
