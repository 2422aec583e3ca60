"""Alters training clips as cameras, codecs and rooms do, so that a network learns what does not matter.

Each transform has a probability and a range, and is drawn once per clip: all windows of a draw share the camera,
the light and the room. Times never move: frame f and sample 640·f stay together. Pure functions of a generator;
draw n of a training has one of its own, so a resumed run sees the same pictures.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import simplejpeg
import soundfile

from mtd_jax.data.clip import FACE_SIZE, SAMPLE_RATE, Clip
from mtd_jax.errors import UserError

Range = tuple[float, float, float]  # probability, and the ends of the range that the strength is drawn from
_HALF = FACE_SIZE // 2
_PULLS = (4, 6)  # down and across the lower half: the grid of displacements of `bend`
_POOL = 1 << 21  # random numbers that noise is taken from
_HOP = 128  # samples between the frames of the phase vocoder; a frame has four times as many


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The transforms. Each is (probability, low, high); probability 0 switches it off, which is the default.

    Video, in the order in which they are applied. The face moves within its crop before the lower half is taken.

    Attributes:
      shift: across and down, as a share of the face's side.
      scale: of the face.
      aspect: of its width to its height.
      rotation: degrees, clockwise.
      flip: left and right, if the number is positive.
      bend: how far single places of the face move, as a share of its side, so that it looks like another's.
      occlusion: side of a rectangle in front of the face, as a share of the face's side.
      grey: how far colours fade, 0 to 1.
      gamma: exponent of the brightness.
      contrast: factor.
      brightness: grey levels added.
      colour_cast: relative strength of single colours, 0 to 1.
      blur: standard deviation in pixels of 96×96.
      low_resolution: pixels across the face of the camera.
      noise: standard deviation in grey levels, new in each frame.
      jpeg: quality, 1 to 100.
      freeze: share of the windows in which a frame repeats the one before.

    Audio, in the order in which they are applied.

    Attributes:
      voice: factor of pitch and formants, with the timing kept, so that it sounds like another's.
      reverberation: seconds until it has faded by 60 dB.
      babble: decibels by which the voice is louder than other people's.
      music: the same for a tune.
      hiss: the same for white noise.
      low_pass, high_pass: hertz.
      tilt: decibels per octave.
      codec: loss of a round trip through Vorbis, 0 to 1.
      gain: decibels.
    """

    shift: Range = (0.0, -0.06, 0.06)
    scale: Range = (0.0, 0.88, 1.14)
    aspect: Range = (0.0, 0.92, 1.08)
    rotation: Range = (0.0, -8.0, 8.0)
    flip: Range = (0.0, 1.0, 1.0)
    bend: Range = (0.0, 0.01, 0.05)
    occlusion: Range = (0.0, 0.1, 0.3)
    grey: Range = (0.0, 0.3, 1.0)
    gamma: Range = (0.0, 0.7, 1.5)
    contrast: Range = (0.0, 0.7, 1.3)
    brightness: Range = (0.0, -35.0, 35.0)
    colour_cast: Range = (0.0, 0.02, 0.2)
    blur: Range = (0.0, 0.4, 1.6)
    low_resolution: Range = (0.0, 28.0, 80.0)
    noise: Range = (0.0, 1.0, 9.0)
    jpeg: Range = (0.0, 20.0, 80.0)
    freeze: Range = (0.0, 0.1, 0.3)
    voice: Range = (0.0, 0.75, 1.35)
    reverberation: Range = (0.0, 0.1, 0.6)
    babble: Range = (0.0, 5.0, 25.0)
    music: Range = (0.0, 5.0, 25.0)
    hiss: Range = (0.0, 5.0, 35.0)
    low_pass: Range = (0.0, 2500.0, 7000.0)
    high_pass: Range = (0.0, 60.0, 300.0)
    tilt: Range = (0.0, -4.0, 4.0)
    codec: Range = (0.0, 0.3, 1.0)
    gain: Range = (0.0, -18.0, 6.0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lowest, highest = _LIMITS.get(field.name, (-np.inf, np.inf))
            if len(value) != 3 or not (0 <= value[0] <= 1 and lowest <= value[1] <= value[2] <= highest):
                expected = f"(probability, low, high) with {lowest:g} ≤ low ≤ high ≤ {highest:g}"
                raise UserError(f"augment.{field.name}: expected {expected}, got {value}")

    @property
    def is_off(self) -> bool:
        return not any(getattr(self, field.name)[0] for field in dataclasses.fields(self))


_LIMITS = {
    "scale": (0.2, 5.0),
    "aspect": (0.2, 5.0),
    "bend": (0.0, 0.2),
    "occlusion": (0.0, 1.0),
    "grey": (0.0, 1.0),
    "gamma": (0.05, 20.0),
    "contrast": (0.0, 10.0),
    "colour_cast": (0.0, 1.0),
    "blur": (0.05, 20.0),
    "low_resolution": (4.0, float(FACE_SIZE)),
    "noise": (0.0, 255.0),
    "jpeg": (1.0, 100.0),
    "freeze": (0.0, 1.0),
    "voice": (0.5, 2.0),
    "reverberation": (0.01, 3.0),
    "low_pass": (100.0, 7900.0),
    "high_pass": (1.0, 7900.0),
    "codec": (0.0, 1.0),
}
OFF = Augmentation()
MILD = Augmentation(
    shift=(0.8, -0.05, 0.05),
    scale=(0.8, 0.9, 1.12),
    aspect=(0.5, 0.95, 1.05),
    rotation=(0.5, -6.0, 6.0),
    flip=(0.5, 1.0, 1.0),
    bend=(0.3, 0.01, 0.03),
    occlusion=(0.05, 0.1, 0.25),
    grey=(0.15, 0.3, 1.0),
    gamma=(0.5, 0.75, 1.35),
    contrast=(0.5, 0.75, 1.25),
    brightness=(0.5, -25.0, 25.0),
    colour_cast=(0.5, 0.02, 0.15),
    blur=(0.25, 0.4, 1.2),
    low_resolution=(0.2, 36.0, 80.0),
    noise=(0.4, 1.0, 6.0),
    jpeg=(0.25, 30.0, 85.0),
    freeze=(0.05, 0.1, 0.2),
    voice=(0.5, 0.85, 1.2),
    reverberation=(0.25, 0.1, 0.4),
    babble=(0.15, 10.0, 25.0),
    music=(0.15, 10.0, 25.0),
    hiss=(0.4, 10.0, 35.0),
    low_pass=(0.25, 3000.0, 7000.0),
    high_pass=(0.25, 60.0, 250.0),
    tilt=(0.5, -3.0, 3.0),
    codec=(0.15, 0.3, 1.0),
    gain=(0.8, -12.0, 6.0),
)

Drawn = dict[str, float | None]  # of each transform its strength for one clip, or None where it is not applied


def draw(rng: np.random.Generator, augmentation: Augmentation) -> Drawn:
    """Draws a strength for every transform. Switching one off leaves those of the others as they are."""
    drawn: Drawn = {}
    for field in dataclasses.fields(augmentation):
        probability, low, high = getattr(augmentation, field.name)
        chance, place = rng.random(2)
        drawn[field.name] = low + place * (high - low) if chance < probability else None
    return drawn


def alter_clip(
    rng: np.random.Generator, drawn: Drawn, clip: Clip, voices: Callable[[], Sequence[np.ndarray]]
) -> Clip:
    """The clip to cut windows from: whole faces where it has them, for `alter_frames`, and its altered audio."""
    waveform = alter_audio(rng, drawn, clip.waveform[: len(clip.waveform)], voices)
    return dataclasses.replace(clip, frames=clip.frames if clip.faces is None else clip.faces, waveform=waveform)


def alter_frames(rng: np.random.Generator, drawn: Drawn, frames: np.ndarray) -> np.ndarray:
    """Applies the transforms of the video.

    Args:
      rng: for what differs between frames.
      frames: uint8 (G, T, 96, 96, 3), whole faces; or (G, T, 48, 96, 3), lower halves, whose edges are repeated
        where the face moves away from them.

    Returns:
      uint8 (G, T, 48, 96, 3), lower halves.
    """
    windows, length = frames.shape[:2]
    if (share := drawn["freeze"]) is not None and length > 1:
        frames = frames.copy()
        for window in np.flatnonzero(rng.random(windows) < share):
            at = int(rng.integers(1, length))
            frames[window, at] = frames[window, at - 1]
    halves = _moved(rng, drawn, frames.reshape(-1, *frames.shape[2:]))
    if (side := drawn["occlusion"]) is not None:
        high, wide = (max(int(FACE_SIZE * side * share), 1) for share in rng.uniform(0.5, 1.0, 2))
        top, left = rng.integers(_HALF - min(high, _HALF) + 1), rng.integers(FACE_SIZE - wide + 1)
        halves[:, top : top + high, left : left + wide] = rng.integers(0, 256, 3)
    halves = _recoloured(rng, drawn, halves)
    if (sigma := drawn["blur"]) is not None:
        halves = np.stack([cv2.GaussianBlur(half, (0, 0), sigma) for half in halves])
    if (pixels := drawn["low_resolution"]) is not None:
        halves = np.stack([_coarse(half, pixels) for half in halves])
    if (sigma := drawn["noise"]) is not None:
        noise = sigma * _normal(rng, halves.size).reshape(halves.shape)
        halves = np.clip(halves + noise, 0, 255).astype(np.uint8)
    if (quality := drawn["jpeg"]) is not None:
        halves = np.stack([_through_jpeg(half, round(quality)) for half in halves])
    return halves.reshape(windows, length, _HALF, FACE_SIZE, 3)


def _moved(rng: np.random.Generator, drawn: Drawn, frames: np.ndarray) -> np.ndarray:
    """Lower halves (n, 48, 96, 3) of moved faces: (n, 96, 96, 3), or their lower halves (n, 48, 96, 3)."""
    above = FACE_SIZE - frames.shape[1]  # rows of the face that are not there
    if all(drawn[name] is None for name in ("shift", "scale", "aspect", "rotation", "flip", "bend")):
        return frames[:, _HALF - above :].copy()
    reach = FACE_SIZE * (drawn["shift"] or 0.0) * rng.uniform(-1, 1, 2)
    scale, aspect = drawn["scale"] or 1.0, (drawn["aspect"] or 1.0) ** 0.5
    angle = np.radians(drawn["rotation"] or 0.0)
    mirror = -1.0 if (drawn["flip"] or 0.0) > 0 else 1.0
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    # Where each pixel of the result comes from.
    matrix = np.diag([mirror / (scale * aspect), aspect / scale]) @ turn
    middle = (FACE_SIZE - 1) / 2
    origin = matrix @ np.array([-middle, _HALF - middle]) + middle - reach
    down, across = np.mgrid[:_HALF, :FACE_SIZE].astype(np.float32)
    sources = np.stack([across, down], -1) @ matrix.T + origin - [0, above]
    if (most := drawn["bend"]) is not None:
        pulls = rng.uniform(-1, 1, (*_PULLS, 2)) * FACE_SIZE * most
        sources += cv2.resize(pulls, (FACE_SIZE, _HALF), interpolation=cv2.INTER_CUBIC)
    across, down = np.moveaxis(sources.astype(np.float32), -1, 0)
    maps = cv2.convertMaps(np.ascontiguousarray(across), np.ascontiguousarray(down), cv2.CV_16SC2)
    return np.stack([cv2.remap(f, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for f in frames])


def _recoloured(rng: np.random.Generator, drawn: Drawn, halves: np.ndarray) -> np.ndarray:
    if (faded := drawn["grey"]) is not None:
        grey = halves @ np.array([0.299, 0.587, 0.114], np.float32)
        halves = (halves + faded * (grey[..., None] - halves)).astype(np.uint8)
    if all(drawn[name] is None for name in ("gamma", "contrast", "brightness", "colour_cast")):
        return halves
    contrast = 1.0 if drawn["contrast"] is None else drawn["contrast"]
    levels = 255 * (np.arange(256) / 255) ** (drawn["gamma"] or 1.0)
    levels = 128 + contrast * (levels - 128) + (drawn["brightness"] or 0.0)
    cast = 1 + (drawn["colour_cast"] or 0.0) * rng.uniform(-1, 1, 3)
    table = np.clip(np.rint(levels[:, None] * cast), 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(halves).reshape(-1, FACE_SIZE, 3), table[None]).reshape(halves.shape)


def _coarse(half: np.ndarray, pixels: float) -> np.ndarray:
    small = max(round(pixels), 1), max(round(pixels / 2), 1)
    less = cv2.resize(half, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(less, (FACE_SIZE, _HALF), interpolation=cv2.INTER_LINEAR)


def _through_jpeg(half: np.ndarray, quality: int) -> np.ndarray:
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(half), quality, colorspace="RGB", colorsubsampling="420")
    return simplejpeg.decode_jpeg(jpeg, colorspace="RGB")


def alter_audio(
    rng: np.random.Generator, drawn: Drawn, waveform: np.ndarray, voices: Callable[[], Sequence[np.ndarray]]
) -> np.ndarray:
    """Applies the transforms of the audio to a whole clip, so that echoes and filters reach into each window.

    Args:
      rng: for what the strengths leave open: the room, the noise, the tune.
      waveform: int16 (n,).
      voices: gives the waveforms of other clips, int16, for babble; called only if they are needed.

    Returns:
      int16 (n,).
    """
    from scipy import signal  # adds filters of warnings, which an import of this package must not do

    samples = waveform.astype(np.float32)
    count, level = len(samples), _rms(samples)
    if level == 0:
        return waveform
    if (factor := drawn["voice"]) is not None:
        samples = _revoiced(samples, factor)
    if (seconds := drawn["reverberation"]) is not None:
        samples = signal.oaconvolve(samples, _room(rng, seconds))[:count]
    if (decibels := drawn["babble"]) is not None:
        others = [np.roll(np.resize(voice, count), int(rng.integers(count))) for voice in map(_scaled, voices())]
        samples = samples + _at(np.sum(others, axis=0), level, decibels)
    if (decibels := drawn["music"]) is not None:
        samples = samples + _at(_tune(rng, count), level, decibels)
    if (decibels := drawn["hiss"]) is not None:
        samples = samples + _at(_normal(rng, count), level, decibels)
    for name, kind in (("low_pass", "lowpass"), ("high_pass", "highpass")):
        if (hertz := drawn[name]) is not None:
            samples = signal.sosfilt(signal.butter(2, hertz, kind, fs=SAMPLE_RATE, output="sos"), samples)
    if (tilt := drawn["tilt"]) is not None:
        octaves = np.log2(np.maximum(np.fft.rfftfreq(2 * count, 1 / SAMPLE_RATE), 50) / 1000)
        spectrum = np.fft.rfft(samples, 2 * count) * 10 ** (tilt * octaves / 20)
        samples = np.fft.irfft(spectrum, 2 * count)[:count]
    # As loud as before: how loud it becomes is for the gain alone.
    samples = np.asarray(samples) * (level / max(_rms(samples), 1e-3)) * 10 ** ((drawn["gain"] or 0.0) / 20)
    altered = np.clip(np.rint(samples), -32768, 32767).astype(np.int16)
    return altered if (loss := drawn["codec"]) is None else _through_a_codec(altered, loss)


def _revoiced(samples: np.ndarray, factor: float) -> np.ndarray:
    """All frequencies times a factor, everything in its time: a phase vocoder stretches, resampling undoes it.

    Each frame of the stretched sound is taken from its place in the original, and its phases advance by as much as
    in the hop before that place, so that no phase has to be unwrapped.
    """
    size = 4 * _HOP
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    frames = int(len(samples) * factor) // _HOP + 1
    padded = np.pad(samples, (size // 2 + _HOP, size))
    places = np.rint(np.arange(frames) * _HOP / factor).astype(int) + _HOP
    here, before = (
        np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, size)[at] * window).astype(np.complex64)
        for at in (places, places - _HOP)
    )
    turns = here * before.conj()
    turns[0] = here[0]
    phases = np.cumsum(np.angle(turns), axis=0)
    loud = np.abs(here)
    loud[:, int((size // 2) / factor) :] = 0  # what would end above half the sample rate
    pieces = np.fft.irfft(loud * np.exp(1j * phases), size).astype(np.float32) * window
    stretched = np.zeros((frames + 3) * _HOP, np.float32)
    for quarter in range(4):
        stretched[quarter * _HOP : (quarter + frames) * _HOP] += pieces[:, quarter * _HOP :][:, :_HOP].ravel()
    stretched = stretched[size // 2 :] / 1.5  # what the squared windows add up to
    return np.interp(np.arange(len(samples)) * factor, np.arange(len(stretched)), stretched).astype(np.float32)


def _room(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """The impulse response of a room whose echoes fade by 60 dB in so many seconds: direct sound, and a tail."""
    times = np.arange(int(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    response = _normal(rng, len(times)) * np.exp(-6.9 * times / seconds)
    response *= rng.uniform(0.3, 0.8) / float(np.linalg.norm(response))
    response[0] += 1.0
    return response


def _through_a_codec(samples: np.ndarray, loss: float) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="OGG", subtype="VORBIS", compression_level=loss)
    file.seek(0)
    heard, _ = soundfile.read(file, dtype="int16")
    return heard[: len(samples)]


def _tune(rng: np.random.Generator, count: int) -> np.ndarray:
    """Notes of a scale at random, each with overtones that fade away."""
    sound = np.zeros(count, np.float32)
    step = SAMPLE_RATE * rng.uniform(0.15, 0.4)
    for start in np.arange(0, count, step).astype(int):
        times = np.arange(min(int(3 * step), count - start), dtype=np.float32) / SAMPLE_RATE
        pitch = 110 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 19, 24]) / 12)
        for overtone in range(1, 5):
            sound[start : start + len(times)] += (
                np.sin(2 * np.pi * overtone * pitch * times) * np.exp(-times * rng.uniform(2, 6)) / overtone
            )
    return sound


def _scaled(samples: np.ndarray) -> np.ndarray:
    return samples / max(_rms(samples), 1.0)


def _at(sound: np.ndarray, level: float, decibels: float) -> np.ndarray:
    """A sound so many decibels below a level."""
    return sound * (level * 10 ** (-decibels / 20) / max(_rms(sound), 1e-6))


def _rms(samples) -> float:
    samples = np.asarray(samples, np.float32)
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0


@functools.cache
def _pool() -> np.ndarray:
    """Normal random numbers. Drawing them anew for each picture would take most of the time of an augmentation."""
    return np.random.default_rng(0).standard_normal(_POOL, np.float32)


def _normal(rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` normal random numbers, float32, from a random place of the pool on."""
    return np.take(_pool(), np.arange(count) + int(rng.integers(_POOL)), mode="wrap")
