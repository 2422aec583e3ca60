"""The camera of the synthetic clips: renders a face, its visemes and a scene as uint8 frames of any size."""

import dataclasses

import numpy as np

from mtd_jax.data.clip import FACE_SIZE, FPS
from mtd_jax.synthetic.face import CHIN_Y, Face, Texture, face_texture
from mtd_jax.synthetic.mouth import Pose, draw_mouth, pose
from mtd_jax.synthetic.variety import AS_DESIGNED, Spread, Variety

_BLOCK = 8  # frames rendered at a time, few enough for their arrays to stay in the cache
_POOL = 1 << 16  # start positions in a pool of noise, from which each frame takes its sensor noise
_PIVOT = (48.0, 55.0)  # centre of the head's rotation, in face coordinates
_JAW_SHARE = 0.75  # movement of the chin relative to the lower teeth


@dataclasses.dataclass(frozen=True)
class View:
    """What the camera sees.

    With the head upright and at rest, pixel (row, column) shows x = left + column / scale_x,
    y = top + row / scale_y in face coordinates.

    Attributes:
      width, height: frame size in pixels.
      left, top: face coordinates of the first pixel.
      scale_x, scale_y: pixels per face unit.
      density: texels per face unit of the texture.
    """

    width: int
    height: int
    left: float
    top: float
    scale_x: float
    scale_y: float
    density: float


CROP = View(FACE_SIZE, FACE_SIZE, 0.0, 0.0, 1.0, 1.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything but the speech that differs between clips of one speaker.

    Attributes:
      motion: float32 (frames, 4), the head's shift right and down (face units), roll (radians) and log scale.
      jitter: float32 (frames, 4), the same for the face detector's box; it affects only crops.
      light: strength of the light from the left and from above, relative to the ambient light.
      tint: float32 (3,), RGB gain.
      flicker: float32 (frames,), gain.
      background: float32 (4, 4, 3), a coarse image behind the head.
      blur: 0 … 1, strength of the camera's blur.
      noise: standard deviation of the sensor noise, for pixels in [0, 1].
      seed: seeds the sensor noise.
    """

    motion: np.ndarray
    jitter: np.ndarray
    light: tuple[float, float]
    tint: np.ndarray
    flicker: np.ndarray
    background: np.ndarray
    blur: float
    noise: float
    seed: int


def sample_scene(rng: np.random.Generator, num_frames: int, variety: Variety = AS_DESIGNED) -> Scene:
    """Draws the head motion, the light and the camera of one clip."""
    pose, light, camera = (Spread(rng, factor) for factor in (variety.pose, variety.light, variety.camera))
    seconds = np.arange(num_frames) / FPS
    backdrop = rng.uniform(0.2, 0.7) + 0.08 * rng.standard_normal(3) + 0.07 * rng.standard_normal((4, 4, 3))
    motion = np.empty((num_frames, 4))
    for column, (rest, sway) in enumerate(((1.2, 1.0), (1.2, 0.8), (0.03, 0.02), (0.025, 0.01))):
        motion[:, column] = pose.normal(0, rest)
        for _ in range(3):
            frequency, phase = rng.uniform(0.08, 0.7), rng.uniform(0, 2 * np.pi)
            motion[:, column] += pose.normal(0, sway / 1.7) * np.sin(2 * np.pi * frequency * seconds + phase)
    shake = rng.uniform(0.05, 0.3)
    return Scene(
        motion=motion.astype(np.float32),
        jitter=(camera.standard_normal((num_frames, 4)) * shake * [1, 1, 0, 0.008]).astype(np.float32),
        light=(float(light.uniform(-0.32, 0.32)), float(light.uniform(0.0, 0.35))),
        tint=(light.uniform(0.82, 1.12) * light.uniform(0.96, 1.04, 3)).astype(np.float32),
        flicker=(1 + 0.006 * camera.standard_normal(num_frames)).astype(np.float32),
        background=backdrop.astype(np.float32),
        blur=min(max(float(camera.uniform(0.0, 0.6)), 0.0), 1.0),
        noise=max(float(camera.uniform(0.004, 0.016)), 0.0),
        seed=int(rng.integers(2**31)),
    )


def render(face: Face, visemes: np.ndarray, scene: Scene, view: View = CROP, *, first_row: int = 0) -> np.ndarray:
    """Renders the clip.

    Args:
      face: the speaker.
      visemes: (frames, 6).
      scene: of the same number of frames.
      view: what the camera sees.
      first_row: skip the rows above; it does not change the other rows.

    Returns:
      uint8 (frames, view.height - first_row, view.width, 3), RGB.
    """
    texture = face_texture(face, _extent(view), view.density)
    light = _light(scene, texture.normal_x, texture.normal_y)
    albedo = np.dstack([texture.albedo[..., :3] * (light[..., None] * scene.tint), texture.albedo[..., 3]])
    margin = 1 if first_row else 0  # the blur reads one row above
    rows = np.arange(first_row - margin, view.height, dtype=np.float32)[:, None]
    columns = np.arange(view.width, dtype=np.float32)
    background = _background(scene, view)[first_row - margin :]
    size = view.height * view.width * 3
    noise_rng = np.random.default_rng(scene.seed)
    pool = noise_rng.standard_normal(_POOL + size, dtype=np.float32) * np.float32(255 * scene.noise)
    offsets = noise_rng.integers(0, _POOL, len(visemes)) + first_row * view.width * 3
    motion = scene.motion + scene.jitter if view == CROP else scene.motion
    mouth = pose(face, visemes)
    frontal = np.zeros(1, np.float32)  # the mouth is shaded as if it faced the camera
    frames = np.empty((len(visemes), view.height - first_row, view.width, 3), np.uint8)
    for start in range(0, len(visemes), _BLOCK):
        block = slice(start, start + _BLOCK)
        part = mouth.frames(block)
        x, y = _face_coordinates(face, motion[block], view, rows, columns)
        image = _sample(texture, albedo, face, part.jaw, x, y, background)
        _place_mouth(face, part, x, y, view.scale_y, _light(scene, frontal, frontal) * scene.tint, image)
        image *= 255 * scene.flicker[block, None, None, None]
        image = _soften(image, scene.blur)[:, margin:]
        for grain, offset in zip(image, offsets[block], strict=True):
            grain += pool[offset : offset + grain.size].reshape(grain.shape)
        frames[block] = np.clip(image + 0.5, 0, 255)
    return frames


def _extent(view: View) -> tuple[float, float, float, float]:
    """What the texture must cover: the view and a margin for the head's motion."""
    right, bottom = view.left + view.width / view.scale_x, view.top + view.height / view.scale_y
    return view.left - 16, view.top - 16, right + 16, bottom + 16


def _light(scene: Scene, normal_x: np.ndarray, normal_y: np.ndarray) -> np.ndarray:
    """Lambertian shading with a strong ambient part; shape of the normals."""
    from_left, from_above = scene.light
    return np.float32(0.95) - np.float32(from_left) * normal_x - np.float32(from_above) * normal_y


def _background(scene: Scene, view: View) -> np.ndarray:
    """The coarse background, interpolated to the frame size: float32 (height, width, 3)."""

    def interpolate(lattice: np.ndarray, length: int) -> np.ndarray:
        position = np.linspace(0, len(lattice) - 1.001, length, dtype=np.float32)
        index = position.astype(np.int32)
        weight = (position - index)[:, None, None]
        return lattice[index] * (1 - weight) + lattice[index + 1] * weight

    wide = interpolate(scene.background, view.height).swapaxes(0, 1)
    return np.clip(interpolate(wide, view.width).swapaxes(0, 1), 0, 1) * scene.tint


def _face_coordinates(
    face: Face, motion: np.ndarray, view: View, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Face coordinates x, y of every pixel, with the motion undone: float32 (frames, rows, columns) each."""
    shift_x, shift_y, roll, log_scale = motion.T[:, :, None, None]
    across = (columns / np.float32(view.scale_x) + np.float32(view.left - _PIVOT[0])) - shift_x
    down = (rows / np.float32(view.scale_y) + np.float32(view.top - _PIVOT[1])) - shift_y
    shrink, aspect = np.exp(-log_scale), np.float32(face.aspect)
    cosine, sine = shrink * np.cos(roll), shrink * np.sin(roll)
    x = cosine * across + (sine / aspect * down + np.float32(_PIVOT[0]))
    y = (-sine * aspect) * across + (cosine * down + np.float32(_PIVOT[1]))
    return x, y


def _sample(texture: Texture, albedo: np.ndarray, face: Face, jaw: np.ndarray, x: np.ndarray, y: np.ndarray,
            background: np.ndarray) -> np.ndarray:  # fmt: skip
    """The head without its mouth, jaw lowered, over the background: float32 (frames, rows, columns, 3)."""
    fall = np.clip((y - face.mouth_y) / np.float32(CHIN_Y - face.mouth_y), 0, 1)
    fall *= fall * (3 - 2 * fall)
    fall *= np.clip((150 - y) / 50, 0, 1)
    # Nearest-texel sampling is enough: a texel is a third of a pixel.
    row = (y - np.float32(_JAW_SHARE) * jaw * fall - np.float32(texture.top)) * texture.density + 0.5
    column = (x - np.float32(texture.left)) * texture.density + 0.5
    height, width = albedo.shape[:2]
    index = np.clip(row, 0, height - 1).astype(np.int32) * width + np.clip(column, 0, width - 1).astype(np.int32)
    rgba = albedo.reshape(-1, 4).take(index.ravel(), axis=0, mode="clip").reshape(*index.shape, 4)
    return rgba[..., :3] + (1 - rgba[..., 3:]) * background


def _place_mouth(face: Face, mouth: Pose, x: np.ndarray, y: np.ndarray, scale: float, shade: np.ndarray,
                 image: np.ndarray) -> None:  # fmt: skip
    """Draws the mouth onto the bounding box of the pixels that it can cover in any frame of the block."""
    u, v = x - np.float32(_PIVOT[0]), y - np.float32(face.mouth_y)
    near = (np.abs(u) < face.mouth_width * 1.2 + 7) & (v > -12) & (v < face.opening + 14)
    rows, columns = np.flatnonzero(np.any(near, axis=(0, 2))), np.flatnonzero(np.any(near, axis=(0, 1)))
    if len(rows):
        box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        draw_mouth(face, mouth, u[box], v[box], scale, shade.astype(np.float32), image[box])


def _soften(image: np.ndarray, blur: float) -> np.ndarray:
    """A three-tap blur along both axes; the edges are padded with their own values."""
    side = np.float32(0.25 * blur)
    for axis in (1, 2):
        moved = np.moveaxis(image, axis, 1)
        soft = moved * (1 - 2 * side)
        soft[:, 1:] += side * moved[:, :-1]
        soft[:, :-1] += side * moved[:, 1:]
        soft[:, 0] += side * moved[:, 0]
        soft[:, -1] += side * moved[:, -1]
        image = np.moveaxis(soft, 1, axis)
    return image
