"""The static part of a synthetic face, everything but the mouth, as a texture.

Face coordinates: the tight face crop is the square 0 ≤ x, y ≤ 96, and one unit is one pixel of a 96×96 crop. The
eyes are near y = 39, the mouth near y = 74 and the chin near y = 97. A real tight box is taller than wide, so a
unit of x is shorter than a unit of y (`Face.aspect`).
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mtd_jax.synthetic.variety import AS_DESIGNED, Spread, Variety

_CENTRE_X = 48.0
CHIN_Y = 97.0


@dataclasses.dataclass(frozen=True)
class Face:
    """A speaker's looks: colours are RGB in [0, 1], lengths in face units. Hashable: textures are cached by it."""

    seed: int
    aspect: float  # width / height of a face unit
    skin: tuple[float, float, float]
    lips: tuple[float, float, float]
    hair: tuple[float, float, float]
    shirt: tuple[float, float, float]
    width: float
    jaw: float  # exponent of the outline: 2 = an ellipse, larger = squarer
    mouth_y: float
    mouth_width: float  # half width of the lips at rest
    opening: float  # how far the jaw drops
    upper_lip: float
    lower_lip: float
    bow: float
    smile: float
    teeth: float  # brightness
    inside: float  # how visible teeth and tongue are
    beard: float
    roughness: float
    nose: float


def sample_face(rng: np.random.Generator, variety: Variety = AS_DESIGNED) -> Face:
    """Draws a speaker's looks."""
    looks = Spread(rng, variety.identity)
    tone = looks.uniform()
    skin = np.array([0.96, 0.78, 0.66]) * (1 - tone) + np.array([0.42, 0.27, 0.19]) * tone
    skin = np.clip(skin * looks.uniform(0.96, 1.04, 3), 0, 1)
    redness = looks.uniform(0.3, 0.8)
    lips = (1 - redness) * skin * np.array([0.86, 0.66, 0.64]) + redness * np.array([0.72, 0.28, 0.30]) * (
        1 - 0.45 * tone
    )
    hair = np.array([0.75, 0.58, 0.35]) * max(looks.uniform(0.08, 1.0), 0.0) ** 1.5 * (1 - 0.6 * tone) + 0.03
    return Face(
        seed=int(rng.integers(2**31)),
        aspect=float(looks.uniform(0.75, 0.82)),
        skin=_colour(skin),
        lips=_colour(lips),
        hair=_colour(hair * looks.uniform(0.9, 1.1, 3)),
        shirt=_colour(looks.uniform(0.1, 0.8, 3)),
        width=float(looks.uniform(44, 50)),
        jaw=float(looks.uniform(2.0, 2.7)),
        mouth_y=float(looks.uniform(72.5, 76.0)),
        mouth_width=float(looks.uniform(17.0, 20.5)),
        opening=float(looks.uniform(13.0, 17.0)),
        upper_lip=float(looks.uniform(2.6, 4.6)),
        lower_lip=float(looks.uniform(3.4, 5.8)),
        bow=float(looks.uniform(0.1, 0.45)),
        smile=float(looks.uniform(-1.2, 1.6)),
        teeth=float(rng.uniform(0.72, 0.95)),
        inside=min(variety.mouth, 1.0),
        beard=min(
            variety.beard * float(rng.uniform(0.2, 0.8) if rng.random() < 0.3 else rng.uniform(0, 0.06)), 1.0
        ),
        roughness=float(looks.uniform(0.02, 0.06)),
        nose=float(looks.uniform(0.85, 1.2)),
    )


@dataclasses.dataclass(frozen=True)
class Texture:
    """A sampled face. Texel (row, column) is at x = left + column / density, y = top + row / density.

    Attributes:
      albedo: float32 (rows, columns, 4): RGB in [0, 1] premultiplied by the coverage, then the coverage itself
        (0 = background).
      normal_x, normal_y: float32 (rows, columns), how far the surface normal points right and down.
    """

    left: float
    top: float
    density: float
    albedo: np.ndarray
    normal_x: np.ndarray
    normal_y: np.ndarray


@functools.lru_cache(maxsize=4)
def face_texture(face: Face, extent: tuple[float, float, float, float], density: float) -> Texture:
    """Paints the face without its mouth.

    Args:
      face: the speaker.
      extent: left, top, right, bottom in face coordinates.
      density: texels per face unit.
    """
    left, top, right, bottom = extent
    x = np.arange(left, right, 1 / density, dtype=np.float32) - np.float32(_CENTRE_X)
    y = np.arange(top, bottom, 1 / density, dtype=np.float32)[:, None]
    side = np.abs(x)
    rng = np.random.default_rng(face.seed)
    mottle = _smooth_noise(rng, x, y, (2.0, 5.0, 12.0))

    skin = np.array(face.skin, np.float32)
    colour = skin * (1 + np.float32(face.roughness) * mottle[..., None])
    blush = _bump((side - 27) / 14, (y - 60) / 13)
    colour *= 1 - blush[..., None] * np.array([0.0, 0.07, 0.06], np.float32)

    def shade(mask: np.ndarray, amount: float) -> None:
        colour[...] *= 1 - np.float32(amount) * mask[..., None]

    def paint(mask: np.ndarray, paint_colour: npt.ArrayLike, amount: float = 1.0) -> None:
        colour[...] += (np.float32(amount) * mask[..., None]) * (np.asarray(paint_colour, np.float32) - colour)

    # Nose, philtrum and the nasolabial folds.
    nose = np.float32(face.nose)
    bridge = _bump(x / (3.5 * nose), (y - 50) / 14)
    tip = _bump(x / (6.5 * nose), (y - 58) / 6)
    shade(_bump((side - 8.5 * nose) / 2.4, (y - 58.5) / 5.5), 0.2)
    shade(_bump(x / (9 * nose), (y - 64.2) / 2.2), 0.3)
    shade(_bump((side - 4.2 * nose) / 2.1, (y - 62.2) / 1.3), 0.75)
    shade(_bump((side - 2.4) / 1.3, (y - 67.5) / 3.0), 0.07)
    shade(_bump((side - 12 - 0.55 * (y - 58)) / 2.2, (y - 67) / 9), 0.12)
    colour += (0.06 * (bridge + 1.3 * tip))[..., None] * skin

    # Beard: stubble on the jaw and above the lip.
    jaw_hair = np.clip((y - 64) / 8, 0, 1) * np.clip((side - 9 + 0.6 * np.maximum(y - 80, 0)) / 9, 0, 1)
    upper = np.clip((y - 64.5) / 2, 0, 1) * np.clip((24 - side) / 6, 0, 1)
    chin = np.clip((y - face.mouth_y - 8) / 3, 0, 1) * np.clip((26 - side) / 8, 0, 1)
    hairy = np.maximum(np.maximum(jaw_hair, chin), upper)
    grain = _smooth_noise(rng, x, y, (0.8, 1.5))
    paint(hairy * np.clip(0.8 + 0.25 * grain, 0, 1), face.hair, face.beard)

    _paint_eyes(face, side, y, paint, shade)

    # The face covers the neck, which covers the hair, which covers the background.
    outline_y = np.where(y < 44, (y - 44) / 56, (y - 44) / (CHIN_Y - 44))
    reach = np.float32(face.width)
    outline = (side / reach) ** face.jaw + np.abs(outline_y) ** face.jaw
    inside = _step((1 - outline) * 20)
    shade(np.clip((outline - 0.72) / 0.28, 0, 1) ** 2, 0.28)
    hairline = _step((8 + 0.012 * side**2 - y) * 0.8 + 0.5 * mottle)
    paint(hairline, np.array(face.hair), 1.0)

    around = np.zeros_like(colour)
    cap = _step((1 - ((side / (reach + 7)) ** 2.2 + np.abs((y - 36) / 55) ** 2.2)) * 12)
    cap = cap * _step((66 - y) / 4)
    neck = _step((reach * 0.68 - side + np.maximum(y - 105, 0) ** 1.5 * 0.12) / 1.5) * _step((y - 70) / 2)
    shirt = _step((y - 116 - 9 * _bump(x / 22, 0 * y)) / 1.5)
    shoulders = _step((1 - ((side / 118) ** 3 + np.clip((178 - y) / 62, 0, 3) ** 3)) * 10) * _step((y - 100) / 3)
    ears = _step((1 - ((side - reach - 1) / 6) ** 2 - ((y - 47) / 12) ** 2) * 3)
    coverage = np.maximum.reduce([inside, cap, neck, shoulders * shirt, ears])
    around += cap[..., None] * (np.array(face.hair, np.float32) * (1 + 0.12 * mottle[..., None]))
    for mask, tint in ((neck, skin * 0.62), (ears, skin * 0.8), (shirt * np.maximum(shoulders, neck), face.shirt)):
        around += mask[..., None] * (np.asarray(tint, np.float32) - around)
    colour = around + inside[..., None] * (colour - around)

    lean = np.float32(1.1)
    normal_x = lean * np.clip(x / reach, -1, 1) ** 3 + 0.25 * nose * tip * np.clip(x / 6, -1, 1)
    normal_x = normal_x * np.clip((120 - y) / 20, 0, 1)  # the head is rounder than the shoulders
    normal_y = 0.35 * np.clip((y - 50) / 45, -1, 1) ** 3 + 0.3 * _bump(x / 14, (y - 86) / 4)
    albedo = np.dstack([np.clip(colour, 0, 1) * coverage[..., None], coverage]).astype(np.float32)
    return Texture(left, top, density, albedo, normal_x.astype(np.float32), normal_y.astype(np.float32))


def _paint_eyes(
    face: Face,
    side: np.ndarray,
    y: np.ndarray,
    paint: Callable[..., None],
    shade: Callable[[np.ndarray, float], None],
) -> None:
    """Paints sockets, eyes, lids and brows, symmetric about the middle of the face."""
    across, down = side - 20.5, y - 39.0
    shade(_bump(across / 12, (down + 2) / 7), 0.16)
    open_eye = _step((1 - (across / 8.2) ** 2 - (down / 3.4) ** 2) * 3)
    paint(open_eye, (0.88, 0.86, 0.84))
    iris = _step((1 - (across / 3.6) ** 2 - (down / 3.8) ** 2) * 4) * open_eye
    paint(iris, np.array(face.hair) * 0.6 + np.array([0.05, 0.06, 0.07]))
    paint(_step((1 - (across / 1.7) ** 2 - (down / 1.8) ** 2) * 3) * open_eye, (0.02, 0.02, 0.02))
    paint(_bump((across - 1.2) / 0.8, (down + 1.3) / 0.8) * open_eye, (1, 1, 1), 0.8)
    lid = _bump(across / 9, (down + 3.4 - 0.045 * across**2) / 0.9)
    paint(lid, (0.1, 0.06, 0.05), 0.85)
    shade(_bump(across / 9, (down - 3.4 + 0.04 * across**2) / 0.8), 0.25)
    brow = _step((1 - np.abs(across / 11.5) ** 4 - ((y - 28.5 - 0.018 * (across - 2) ** 2) / 1.9) ** 2) * 2)
    paint(brow, face.hair, 0.85)


def _colour(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in np.clip(values, 0, 1))
    return red, green, blue


def _step(distance: np.ndarray) -> np.ndarray:
    """0 outside, 1 inside, with a ramp one unit wide in between."""
    return np.clip(distance + np.float32(0.5), 0, 1)


def _bump(*offsets: np.ndarray) -> np.ndarray:
    """A Gaussian of standard deviation 1/√2 around the point where all offsets are 0."""
    return np.exp(-sum(np.square(offset) for offset in offsets)).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """Value noise of order 1, summed over scales; the same field at any texel density."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for scale in scales:
        lattice = rng.standard_normal((128, 128), dtype=np.float32)  # repeats every 127 cells
        column, row = x / scale, y / scale
        c, r = np.floor(column).astype(np.int32), np.floor(row).astype(np.int32)
        fc, fr = column - c, row - r
        c, r = c % 127, r % 127
        columns = lattice[:, c] * (1 - fc) + lattice[:, c + 1] * fc
        total += columns[r[:, 0]] * (1 - fr) + columns[r[:, 0] + 1] * fr
    return total / np.float32(len(scales) ** 0.5)
