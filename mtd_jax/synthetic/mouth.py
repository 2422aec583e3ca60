"""Lips, teeth and tongue of a synthetic face, drawn per pixel from the visemes by implicit curves."""

import dataclasses

import numpy as np

from mtd_jax.synthetic.face import Face
from mtd_jax.synthetic.speech import VISEMES

_INTERIOR = np.array([0.13, 0.035, 0.035], np.float32)
_TONGUE = np.array([0.66, 0.30, 0.29], np.float32)
_TOOTH = np.array([1.0, 0.97, 0.88], np.float32)


@dataclasses.dataclass(frozen=True)
class Pose:
    """Mouth geometry per frame, each float32 (frames, 1, 1), in face units; y grows downwards from the mouth line.

    Attributes:
      half_width: from the middle to a lip corner.
      rise, drop: how far the inner edges of the upper and lower lip have left the mouth line.
      jaw: how far the lower teeth have.
      upper, lower: thickness of the lips.
      pucker: 0 … 1, how far the lips are rounded and thrust forward.
      tongue: 0 … 1, how far the tongue shows.
      spread: 0 … 1.
    """

    half_width: np.ndarray
    rise: np.ndarray
    drop: np.ndarray
    jaw: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    pucker: np.ndarray
    tongue: np.ndarray
    spread: np.ndarray

    def frames(self, block: slice) -> "Pose":
        """A stretch of the frames."""
        return Pose(*(getattr(self, field.name)[block] for field in dataclasses.fields(self)))


def pose(face: Face, visemes: np.ndarray) -> Pose:
    """Turns visemes (frames, 6) into geometry."""
    columns = np.clip(visemes, 0, 1.3).astype(np.float32).T[:, :, None, None]
    opened, spread, pucker, teeth, tongue, press = (columns[VISEMES.index(name)] for name in VISEMES)
    jaw = np.float32(face.opening) * opened
    bared = teeth * (1 - 0.6 * pucker)
    parted = np.clip(1.15 - 1.3 * press, 0, 1)
    thin = 1 - 0.55 * press - 0.12 * spread - 0.1 * opened + 0.35 * pucker
    return Pose(
        half_width=np.float32(face.mouth_width) * (1 + 0.17 * spread - 0.42 * pucker - 0.05 * opened),
        rise=0.2 * jaw + 2.6 * bared * (1 - 0.25 * press),
        drop=(0.86 * jaw + 2.8 * bared) * parted,
        jaw=jaw,
        upper=np.float32(face.upper_lip) * thin,
        lower=np.float32(face.lower_lip) * (thin - 0.25 * press * teeth),
        pucker=np.clip(pucker, 0, 1),
        tongue=tongue,
        spread=spread,
    )


def draw_mouth(face: Face, pose: Pose, u: np.ndarray, v: np.ndarray, unit: float, shade: np.ndarray,
               canvas: np.ndarray) -> None:  # fmt: skip
    """Draws the mouth over a stretch of skin.

    Args:
      face, pose: what to draw.
      u, v: float32 (frames, rows, columns), position right of and below the middle of the mouth line, face units.
      unit: pixels per face unit: edges are one pixel soft.
      shade: float32 (3,), light that falls on it, RGB.
      canvas: float32 (frames, rows, columns, 3), changed in place.
    """
    lips = np.array(face.lips, np.float32) * shade
    across = np.square(u / pose.half_width)
    v = v + np.float32(face.smile) * (np.minimum(across, 1.5) - 0.4)
    outer = np.maximum(1 - across, 0)
    round_outer = np.sqrt(outer)
    inner = np.maximum(1 - across * np.float32(1.22), 0)
    # Spread lips open as a lens, rounded ones as an ellipse.
    arch = inner + (0.35 + 0.65 * pose.pucker) * (np.sqrt(inner) - inner)
    top_inner = -pose.rise * arch
    low_inner = pose.drop * arch
    dip = np.square(np.maximum(1 - np.square(u * np.float32(0.2)), 0))
    top_outer = top_inner - pose.upper * (outer + 0.3 * (round_outer - outer)) * (1 - np.float32(face.bow) * dip)
    low_outer = low_inner + pose.lower * round_outer

    def above(edge: np.ndarray) -> np.ndarray:
        return np.clip((edge - v) * unit + 0.5, 0, 1)

    def below(edge: np.ndarray) -> np.ndarray:
        return np.clip((v - edge) * unit + 0.5, 0, 1)

    def paint(mask: np.ndarray, colour: np.ndarray) -> None:
        canvas[...] += mask[..., None] * (colour - canvas)

    # Skin around: the hollow under the lower lip, and creases beside spread corners.
    hollow = np.maximum(1 - np.square((v - low_outer - 2.4) * np.float32(0.4)), 0) * outer
    crease = np.maximum(1 - np.square((np.abs(u) - pose.half_width - 3 + 0.25 * v) * np.float32(0.32)), 0)
    crease *= np.square(np.maximum(1 - np.square(v * np.float32(0.1)), 0)) * (0.04 + 0.17 * pose.spread)
    canvas *= (1 - (0.2 + 0.18 * pose.pucker) * hollow - crease)[..., None]

    # Lips: the upper faces the floor, the lower catches the light on its fullest part.
    within = np.clip((pose.half_width - np.abs(u)) * np.float32(0.7 * unit) + 0.5, 0, 1)
    lip = below(top_outer) * above(low_outer) * within
    lower_side = np.clip((v - 0.5 * (top_inner + low_inner)) * unit + 0.5, 0, 1)
    depth = (v - low_inner) / np.maximum(pose.lower, 1)
    gloss = np.maximum(1 - np.square((depth - 0.45) * np.float32(3.0)), 0) * outer
    brightness = 0.8 + lower_side * (0.2 + (0.16 + 0.14 * pose.pucker) * gloss)
    canvas += lip[..., None] * (brightness[..., None] * lips - canvas)

    # Inside: dark, then the teeth, then the tongue.
    hole = below(top_inner) * above(low_inner)
    closed = np.maximum(1 - np.abs(v) * np.float32(0.9), 0) * np.sqrt(inner)
    hole = np.maximum(hole * (inner > 0), 0.62 * closed * lip * (pose.rise + pose.drop < 1.2))
    paint(hole, _INTERIOR * shade)
    row = np.maximum(1 - across * np.float32(1.6), 0)
    visible = (1 - 0.8 * pose.pucker) * np.minimum(3 * row, 1)
    tooth = np.float32(face.teeth) * _TOOTH * shade
    gaps = 1 - 0.1 * np.square(np.square(np.sin(u * np.float32(np.pi / 4.2) + np.float32(np.pi / 2))))
    upper_teeth = above(0.9 + 0.5 * row) * hole * visible * gaps
    paint(upper_teeth, tooth * (0.75 + 0.25 * np.sqrt(row))[..., None])
    lower_teeth = below(pose.jaw + 1.6 - 0.4 * row) * hole * visible
    paint(lower_teeth, tooth * 0.8)
    gap = pose.rise + pose.drop
    crown = pose.drop - gap * (0.28 + 0.5 * pose.tongue) + 6 * across
    show = np.clip(0.45 + 1.1 * pose.tongue + 0.25 * (gap > 6), 0, 1)
    tongue = below(crown) * hole * (row > 0) * np.minimum(gap * 0.25, 1) * show
    tongue *= 1 - lower_teeth * (1 - np.clip(1.5 * pose.tongue - 0.2, 0, 1))
    light = np.clip(0.55 + 0.35 * pose.tongue + 0.03 * (v - crown), 0.3, 1.05)
    canvas += tongue[..., None] * (light[..., None] * (_TONGUE * shade) - canvas)
