"""Draws lips, teeth and tongue of a synthetic face from its visemes, pixel by pixel, with implicit curves."""

import dataclasses

import numpy as np

from mtd_jax.synthetic.face import Face
from mtd_jax.synthetic.speech import VISEMES

_INTERIOR = np.array([0.13, 0.035, 0.035], np.float32)
_TONGUE = np.array([0.66, 0.30, 0.29], np.float32)
_TOOTH = np.array([1.0, 0.97, 0.88], np.float32)


@dataclasses.dataclass(frozen=True)
class Pose:
    """Mouth geometry per frame. Each array is float32 (frames, 1, 1), in face units; y points down.

    Attributes:
      half_width: from the middle of the mouth to a lip corner.
      rise: distance of the upper lip's inner edge above the mouth line.
      drop: distance of the lower lip's inner edge below it.
      jaw: distance of the lower teeth below it.
      upper, lower: thickness of the lips.
      pucker: 0 … 1, how far the lips are rounded and protruded.
      tongue: 0 … 1, how visible the tongue is.
      spread: 0 … 1, how far the lip corners are pulled apart.
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
        """The pose in a block of frames."""
        return Pose(*(getattr(self, field.name)[block] for field in dataclasses.fields(self)))


def pose(face: Face, visemes: np.ndarray) -> Pose:
    """Turns visemes, (frames, 6), into mouth geometry."""
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
    """Draws the mouth over skin.

    Args:
      face: the speaker.
      pose: the mouth's geometry.
      u, v: float32 (frames, rows, columns), position to the right of the middle of the mouth line and below it, in
        face units.
      unit: pixels per face unit; edges get a ramp one pixel wide.
      shade: float32 (3,), RGB of the incident light.
      canvas: float32 (frames, rows, columns, 3), modified in place.
    """
    lips = np.array(face.lips, np.float32) * shade
    across = np.square(u / pose.half_width)
    v = v + np.float32(face.smile) * (np.minimum(across, 1.5) - 0.4)
    outer = np.maximum(1 - across, 0)
    round_outer = np.sqrt(outer)
    inner = np.maximum(1 - across * np.float32(1.22), 0)
    # Spread lips open to the shape of a lens, rounded ones to an ellipse.
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

    # The surrounding skin: the hollow under the lower lip, and creases next to spread corners.
    hollow = np.maximum(1 - np.square((v - low_outer - 2.4) * np.float32(0.4)), 0) * outer
    crease = np.maximum(1 - np.square((np.abs(u) - pose.half_width - 3 + 0.25 * v) * np.float32(0.32)), 0)
    crease *= np.square(np.maximum(1 - np.square(v * np.float32(0.1)), 0)) * (0.04 + 0.17 * pose.spread)
    canvas *= (1 - (0.2 + 0.18 * pose.pucker) * hollow - crease)[..., None]

    # The upper lip faces down and is darker; the lower lip has a highlight on its fullest part.
    within = np.clip((pose.half_width - np.abs(u)) * np.float32(0.7 * unit) + 0.5, 0, 1)
    lip = below(top_outer) * above(low_outer) * within
    lower_side = np.clip((v - 0.5 * (top_inner + low_inner)) * unit + 0.5, 0, 1)
    depth = (v - low_inner) / np.maximum(pose.lower, 1)
    gloss = np.maximum(1 - np.square((depth - 0.45) * np.float32(3.0)), 0) * outer
    brightness = 0.8 + lower_side * (0.2 + (0.16 + 0.14 * pose.pucker) * gloss)
    canvas += lip[..., None] * (brightness[..., None] * lips - canvas)

    # Back to front: the dark interior, the teeth, the tongue.
    hole = below(top_inner) * above(low_inner)
    closed = np.maximum(1 - np.abs(v) * np.float32(0.9), 0) * np.sqrt(inner)
    hole = np.maximum(hole * (inner > 0), 0.62 * closed * lip * (pose.rise + pose.drop < 1.2))
    paint(hole, _INTERIOR * shade)
    row = np.maximum(1 - across * np.float32(1.6), 0)
    visible = (1 - 0.8 * pose.pucker) * np.minimum(3 * row, 1)
    tooth = np.float32(face.teeth) * _TOOTH * shade
    gaps = 1 - 0.1 * np.square(np.square(np.sin(u * np.float32(np.pi / 4.2) + np.float32(np.pi / 2))))
    inside = hole * np.float32(face.inside)
    upper_teeth = above(0.9 + 0.5 * row) * inside * visible * gaps
    paint(upper_teeth, tooth * (0.75 + 0.25 * np.sqrt(row))[..., None])
    lower_teeth = below(pose.jaw + 1.6 - 0.4 * row) * inside * visible
    paint(lower_teeth, tooth * 0.8)
    gap = pose.rise + pose.drop
    crown = pose.drop - gap * (0.28 + 0.5 * pose.tongue) + 6 * across
    show = np.clip(0.45 + 1.1 * pose.tongue + 0.25 * (gap > 6), 0, 1)
    tongue = below(crown) * inside * (row > 0) * np.minimum(gap * 0.25, 1) * show
    tongue *= 1 - lower_teeth * (1 - np.clip(1.5 * pose.tongue - 0.2, 0, 1))
    light = np.clip(0.55 + 0.35 * pose.tongue + 0.03 * (v - crown), 0.3, 1.05)
    canvas += tongue[..., None] * (light[..., None] * (_TONGUE * shade) - canvas)
