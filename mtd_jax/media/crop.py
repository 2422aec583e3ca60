"""From a face crop of any size to the network's picture of it."""

import cv2
import numpy as np

from mtd_jax.data.clip import FACE_SIZE


def lower_face(face: np.ndarray) -> np.ndarray:
    """The lower half of a face crop, after bilinear resizing to 96×96 where it has another size.

    Args:
      face: uint8 (height, width, 3), any channel order.

    Returns:
      uint8 (48, 96, 3), rows 48–95 of the 96×96 face.
    """
    if face.shape[:2] != (FACE_SIZE, FACE_SIZE):
        face = cv2.resize(face, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_LINEAR)
    return face[FACE_SIZE // 2 :]
