"""Synthetic talking faces: speakers and clips drawn from a seed, in memory.

One utterance drives both the voice and the mouth, so video and audio are in sync as in a real recording. All of it
is a function of (seed, speaker, index): the same numbers give the same bytes.
"""

import dataclasses
import functools

import numpy as np

from mtd_jax.data.clip import FACE_SIZE, FPS, SAMPLES_PER_FRAME, Clip
from mtd_jax.errors import UserError
from mtd_jax.synthetic.face import Face, sample_face
from mtd_jax.synthetic.render import Scene, View, render, sample_scene
from mtd_jax.synthetic.speech import utter
from mtd_jax.synthetic.variety import AS_DESIGNED, Spread, Variety
from mtd_jax.synthetic.voice import Voice, sample_voice, speak
from mtd_jax.video.write import delay

PORTRAIT_SIZE = 256
_PORTRAIT_FACE = 128  # height of the face box in a portrait, in pixels
_PORTRAIT_TOP = 62  # rows above it


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A voice, a face, and how clearly the mouth articulates."""

    voice: Voice
    face: Face
    clarity: float


@dataclasses.dataclass(frozen=True)
class Recording:
    """A clip before rendering: everything that determines its pixels and samples.

    Attributes:
      name: `speaker/clip`.
      speaker: who speaks.
      scene: head motion, light and camera.
      visemes: float32 (frames, 6), see `speech.VISEMES`.
      waveform: int16 (640 · frames,).
    """

    name: str
    speaker: Speaker
    scene: Scene
    visemes: np.ndarray
    waveform: np.ndarray


@functools.lru_cache(maxsize=64)
def sample_speaker(seed: int, speaker: int, variety: Variety = AS_DESIGNED) -> Speaker:
    """Draws speaker number `speaker` of the corpus with this seed."""
    rng = np.random.default_rng([seed, speaker, 0])
    voice, face = sample_voice(rng, variety), sample_face(rng, variety)
    return Speaker(voice, face, clarity=float(Spread(rng, variety.articulation).uniform(0.85, 1.1)))


def record(seed: int, speaker: int, index: int, seconds: float, variety: Variety = AS_DESIGNED) -> Recording:
    """Draws clip number `index` of a speaker; `seconds` is rounded to whole frames.

    Raises:
      UserError: a negative number, or less than one frame.
    """
    num_frames = round(seconds * FPS)
    if seed < 0 or speaker < 0 or index < 0 or num_frames < 1:
        got = f"{seed}, {speaker}, {index}, {seconds} s"
        raise UserError(f"expected seed, speaker, index ≥ 0 and at least one frame, got {got}")
    person = sample_speaker(seed, speaker, variety)
    speech_rng, voice_rng, scene_rng = np.random.default_rng([seed, speaker, index + 1]).spawn(3)
    utterance = utter(speech_rng, num_frames, rate=person.voice.rate, clarity=person.clarity)
    waveform = speak(voice_rng, person.voice, utterance.voice)
    scene = sample_scene(scene_rng, num_frames, variety)
    return Recording(clip_name(speaker, index), person, scene, utterance.frame_visemes(), waveform)


def clip_name(speaker: int, index: int) -> str:
    """The name of a clip, which is also its folder in the LRS2 layout."""
    return f"speaker{speaker:05d}/{index:05d}"


def synthetic_clip(seed: int, speaker: int, index: int, seconds: float = 4.0) -> Clip:
    """Draws one clip in memory. It equals the clip of the corpus on disk, except for JPEG compression.

    Args:
      seed: of the corpus, ≥ 0.
      speaker: number of the speaker, ≥ 0; determines face and voice.
      index: number of the speaker's clip, ≥ 0.
      seconds: length, rounded to whole frames of 40 ms.

    Raises:
      UserError: as `record`.
    """
    recording = record(seed, speaker, index, seconds)
    frames = render(recording.speaker.face, recording.visemes, recording.scene, first_row=FACE_SIZE // 2)
    return Clip(recording.name, frames, recording.waveform)


def portrait(recording: Recording) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Renders the recording from further away, with head and shoulders.

    Returns:
      uint8 (frames, 256, 256, 3) RGB, and the box (x0, y0, x1, y1), in pixels, of the face crop.
    """
    face = recording.speaker.face
    scale_y = _PORTRAIT_FACE / FACE_SIZE
    scale_x = scale_y * face.aspect
    half = FACE_SIZE * scale_x / 2
    left = FACE_SIZE / 2 - PORTRAIT_SIZE / 2 / scale_x
    view = View(PORTRAIT_SIZE, PORTRAIT_SIZE, left, -_PORTRAIT_TOP / scale_y, scale_x, scale_y, density=3.0)
    box = (
        round(PORTRAIT_SIZE / 2 - half),
        _PORTRAIT_TOP,
        round(PORTRAIT_SIZE / 2 + half),
        _PORTRAIT_TOP + _PORTRAIT_FACE,
    )
    return render(face, recording.visemes, recording.scene, view), box


def shift_audio(waveform: np.ndarray, frames: int) -> np.ndarray:
    """Makes the audio early by `frames` video frames (late if negative).

    Keeps the length; silence fills the gap. A detector should then report an offset of `+frames`.
    """
    return delay(waveform, -frames * SAMPLES_PER_FRAME)
