"""Babble for the synthetic talking faces: a random phone sequence as smooth tracks for a voice and a mouth.

The phone targets are textbook values (formants after Peterson & Barney 1952). The mouth's coarticulation follows
the dominance model of Cohen & Massaro (1993): the average of the targets, weighted by dominance, smoothed in time.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from mtd_jax.data.clip import FPS

VISEMES = ("open", "spread", "round", "teeth", "tongue", "press")
VOICE_TRACKS = ("f1", "f2", "f3", "voicing", "frication", "noise_hz", "noise_width_hz")
TRACK_RATE = 1000  # track points per second

_MARGIN_MS = 300  # cut off at both ends, so that a clip can start in the middle of a phone
_VOICE_SIGMA_MS = 11.0
_MOUTH_SIGMA_MS = 30.0

_Targets = tuple[tuple[float, ...], tuple[float, ...]]  # acoustic, visemes

# Acoustic: F1, F2, F3, voicing, frication, noise Hz, noise width Hz, duration ms, dominance. Visemes: `VISEMES`.
_VOWELS: dict[str, _Targets] = {
    "i": ((280, 2250, 2900, 0.85, 0.0, 3000, 2000, 110, 1.0), (0.22, 0.95, 0.0, 0.55, 0.0, 0.0)),
    "e": ((450, 1950, 2600, 0.95, 0.0, 3000, 2000, 115, 1.0), (0.48, 0.70, 0.0, 0.35, 0.1, 0.0)),
    "ae": ((680, 1720, 2450, 1.0, 0.0, 3000, 2000, 135, 1.0), (0.80, 0.50, 0.0, 0.30, 0.15, 0.0)),
    "a": ((740, 1150, 2500, 1.0, 0.0, 3000, 2000, 140, 1.0), (1.00, 0.10, 0.0, 0.10, 0.1, 0.0)),
    "aw": ((580, 860, 2450, 1.0, 0.0, 3000, 2000, 135, 1.0), (0.75, 0.0, 0.55, 0.0, 0.0, 0.0)),
    "o": ((440, 820, 2400, 0.95, 0.0, 3000, 2000, 125, 1.0), (0.50, 0.0, 0.85, 0.0, 0.0, 0.0)),
    "u": ((310, 880, 2300, 0.85, 0.0, 3000, 2000, 110, 1.0), (0.22, 0.0, 1.0, 0.0, 0.0, 0.0)),
    "uh": ((600, 1250, 2450, 0.9, 0.0, 3000, 2000, 80, 0.8), (0.52, 0.15, 0.05, 0.15, 0.1, 0.0)),
    "er": ((480, 1350, 1700, 0.9, 0.0, 3000, 2000, 110, 0.9), (0.35, 0.05, 0.35, 0.2, 0.1, 0.0)),
}
_CONSONANTS: dict[str, _Targets] = {
    "p": ((350, 900, 2200, 0.0, 0.55, 900, 1500, 85, 2.5), (0.0, 0.1, 0.0, 0.0, 0.0, 1.0)),
    "b": ((300, 900, 2200, 0.22, 0.4, 800, 1500, 75, 2.5), (0.0, 0.1, 0.0, 0.0, 0.0, 1.0)),
    "m": ((260, 1000, 2200, 0.45, 0.0, 1000, 1500, 80, 2.5), (0.0, 0.1, 0.0, 0.0, 0.0, 1.0)),
    "t": ((350, 1800, 2700, 0.0, 0.8, 4500, 2500, 80, 0.5), (0.15, 0.25, 0.0, 0.5, 0.35, 0.0)),
    "d": ((300, 1800, 2700, 0.22, 0.55, 4000, 2500, 65, 0.5), (0.17, 0.25, 0.0, 0.45, 0.35, 0.0)),
    "n": ((270, 1550, 2500, 0.45, 0.0, 4000, 2500, 70, 0.5), (0.17, 0.25, 0.0, 0.4, 0.4, 0.0)),
    "k": ((320, 1700, 2200, 0.0, 0.65, 2000, 900, 85, 0.3), (0.3, 0.15, 0.0, 0.2, 0.05, 0.0)),
    "g": ((290, 1700, 2200, 0.22, 0.45, 1800, 900, 70, 0.3), (0.3, 0.15, 0.0, 0.2, 0.05, 0.0)),
    "f": ((350, 1200, 2300, 0.0, 0.22, 5200, 5000, 95, 2.0), (0.06, 0.1, 0.0, 0.85, 0.0, 0.5)),
    "v": ((300, 1200, 2300, 0.4, 0.13, 5000, 5000, 70, 2.0), (0.06, 0.1, 0.0, 0.8, 0.0, 0.5)),
    "s": ((350, 1700, 2600, 0.0, 0.9, 5600, 1800, 105, 1.2), (0.08, 0.45, 0.0, 1.0, 0.0, 0.0)),
    "z": ((300, 1700, 2600, 0.35, 0.5, 5400, 1800, 80, 1.2), (0.08, 0.45, 0.0, 0.95, 0.0, 0.0)),
    "sh": ((350, 1750, 2400, 0.0, 0.95, 3000, 1300, 105, 1.5), (0.18, 0.0, 0.7, 0.75, 0.0, 0.0)),
    "th": ((350, 1400, 2500, 0.0, 0.2, 6000, 6000, 90, 1.5), (0.22, 0.15, 0.0, 0.45, 1.0, 0.0)),
    "l": ((340, 1150, 2700, 0.65, 0.0, 3000, 2000, 70, 1.0), (0.34, 0.2, 0.0, 0.2, 0.85, 0.0)),
    "r": ((380, 1150, 1550, 0.7, 0.0, 3000, 2000, 75, 1.0), (0.2, 0.0, 0.55, 0.25, 0.0, 0.0)),
    "w": ((300, 680, 2200, 0.65, 0.0, 3000, 2000, 75, 1.6), (0.1, 0.0, 1.0, 0.0, 0.0, 0.1)),
    "y": ((270, 2250, 3000, 0.65, 0.0, 3000, 2000, 65, 0.8), (0.18, 0.8, 0.0, 0.5, 0.0, 0.0)),
    "h": ((500, 1450, 2500, 0.0, 0.25, 1600, 2500, 65, 0.2), (0.45, 0.1, 0.0, 0.1, 0.0, 0.0)),
}
PHONES = {**_VOWELS, **_CONSONANTS}
_PLOSIVES = frozenset("pbtdkg")
_SILENCE: _Targets = ((450, 1450, 2450, 0.0, 0.0, 3000, 2000, 200, 0.8), (0.05, 0.05, 0.0, 0.0, 0.0, 0.25))


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Voice and mouth tracks of one utterance.

    Attributes:
      voice: float64 (milliseconds, 7), columns as in `VOICE_TRACKS`, for a vocal tract of average length.
      mouth: float64 (milliseconds, 6), columns as in `VISEMES`, roughly in [0, 1].
    """

    voice: np.ndarray
    mouth: np.ndarray

    def frame_visemes(self) -> np.ndarray:
        """What a camera sees: the mouth averaged over each frame's 40 ms exposure, float32 (frames, 6)."""
        exposure = TRACK_RATE // FPS
        return self.mouth.reshape(-1, exposure, len(VISEMES)).mean(axis=1).astype(np.float32)


class _Segment(NamedTuple):
    """A span of constant targets.

    Attributes:
      milliseconds: its length.
      voice: float64 (7,), as in `VOICE_TRACKS`.
      visemes: float64 (6,), as in `VISEMES`.
      dominance: weight of the visemes among their neighbours.
    """

    milliseconds: int
    voice: np.ndarray
    visemes: np.ndarray
    dominance: float


def utter(rng: np.random.Generator, num_frames: int, *, rate: float = 1.0, clarity: float = 1.0) -> Utterance:
    """Draws an utterance of `num_frames` video frames.

    Args:
      rng: the only source of randomness.
      num_frames: length in frames of 40 ms.
      rate: speaking rate; 1 is about four syllables per second.
      clarity: scale of the mouth's movements; 1 = the mouth reaches its targets.
    """
    milliseconds = num_frames * (TRACK_RATE // FPS)
    segments = _segments(rng, milliseconds + 2 * _MARGIN_MS, rate)
    lengths = np.array([segment.milliseconds for segment in segments])
    voice = np.repeat(np.array([segment.voice for segment in segments]), lengths, axis=0)
    mouth = np.repeat(np.array([segment.visemes for segment in segments]), lengths, axis=0)
    dominance = np.repeat(np.array([segment.dominance for segment in segments]), lengths)[:, None]
    total = milliseconds + 2 * _MARGIN_MS
    kept = slice(_MARGIN_MS, _MARGIN_MS + milliseconds)
    voice = _smooth(voice[:total], _VOICE_SIGMA_MS)
    weighted = _smooth(np.hstack([mouth * dominance, dominance])[:total], _MOUTH_SIGMA_MS)
    mouth = clarity * weighted[:, :-1] / weighted[:, -1:]
    return Utterance(voice[kept], mouth[kept])


def _segments(rng: np.random.Generator, milliseconds: int, rate: float) -> list[_Segment]:
    """Random (C)V(C) syllables and pauses, of at least `milliseconds` in total."""
    vowels, consonants = list(_VOWELS), list(_CONSONANTS)
    segments: list[_Segment] = []
    elapsed = 0
    while elapsed < milliseconds:
        emphasis = rng.uniform(0.7, 1.25)
        loudness = 10 ** (rng.uniform(-5, 2) / 20) * emphasis
        syllable = [str(rng.choice(vowels))]
        if rng.random() < 0.85:
            syllable.insert(0, str(rng.choice(consonants)))
        if rng.random() < 0.4:
            syllable.append(str(rng.choice(consonants)))
        new = [part for name in syllable for part in _phone(rng, name, emphasis, loudness, rate)]
        if rng.random() < 0.1:
            new.append(_segment(_SILENCE, rng.uniform(100, 400), 1.0, 1.0))
        segments += new
        elapsed += sum(part.milliseconds for part in new)
    return segments


def _phone(rng: np.random.Generator, name: str, emphasis: float, loudness: float, rate: float) -> list[_Segment]:
    """One phone as a single segment, or as closure and burst if it is a plosive."""
    targets = PHONES[name]
    duration = targets[0][7] * rng.uniform(0.75, 1.35) / rate * (emphasis if name in _VOWELS else 1.0)
    openness = 0.35 + 0.65 * emphasis if name in _VOWELS else 1.0
    if name not in _PLOSIVES:
        return [_segment(targets, duration, loudness, openness)]
    burst_ms = rng.uniform(18, 30)
    closure = _segment(targets, max(duration - burst_ms, 35), loudness, openness, frication=0.0)
    # During the burst the lips are already moving to the next phone, hence the low dominance.
    burst = _segment(targets, burst_ms, loudness, openness, dominance=0.15)
    return [closure, burst]


def _segment(
    targets: _Targets,
    duration: float,
    loudness: float,
    openness: float,
    frication: float | None = None,
    dominance: float | None = None,
) -> _Segment:
    """Scales a phone's targets; `frication` and `dominance` replace those of the table."""
    acoustic, visemes = targets
    voice = np.array(acoustic[:7], dtype=np.float64)
    if frication is not None:
        voice[4] = frication
    voice[3:5] *= loudness
    mouth = np.array(visemes)
    mouth[0] *= openness
    return _Segment(int(duration), voice, mouth, acoustic[8] if dominance is None else dominance)


def _smooth(tracks: np.ndarray, sigma_ms: float) -> np.ndarray:
    """Gaussian smoothing along time; the ends are padded with their edge values."""
    radius = int(4 * sigma_ms)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_ms) ** 2)
    padded = np.pad(tracks, ((radius, radius), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel / kernel.sum(), mode="valid") for column in padded.T], axis=1)
