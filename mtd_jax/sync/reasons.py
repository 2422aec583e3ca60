"""Why a verdict is not sure, or what to doubt in it, in words."""

import math

import numpy as np

from mtd_jax.data.clip import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from mtd_jax.sync.evidence import Estimate
from mtd_jax.sync.verdict import CONFIDENT, GUESS, Course, two_digits, words
from mtd_jax.video.audio import QUIET

_STILL = 0.6  # grey levels of change from frame to frame; drawings have 8, people 2 and more
_FEW = 10  # independent windows: 2 s
_SHORT = 50  # independent windows: 10 s
_PAUSES = 0.12  # share of frames much quieter than the second around them: speech pauses, music hardly does


def doubts(
    whole: Estimate,
    course: Course,
    max_shift: int,
    wide: int | None,
    motions: list[float],
    audio: np.ndarray,
    video_seconds: float,
    better: int | None = None,
) -> list[str]:
    """Doubts about a verdict, one line each.

    Args:
      whole: the estimate of the film.
      course: of the offset over the film.
      max_shift: that was asked for.
      wide: the offset in frames that a wider search is sure of, if there was one.
      motions: how much the mouth region of each face changes between frames, in grey levels of 255.
      audio: int16, of the film.
      video_seconds: how long the video is.
      better: the offset that the wider search likes better than the one that was sure in the range, if so.
    """
    lines, ends = [], len(audio) / SAMPLE_RATE
    if ends < video_seconds - 1:
        lines.append(f"the audio ends at {ends:.1f} s of {video_seconds:.1f} s")
    loudness = loudest_tenth(audio)
    if loudness == 0:
        lines.append("the audio is silent: there is nothing to compare the video with")
    elif loudness < QUIET / 32768:
        lines.append(f"the audio is nearly silent ({20 * math.log10(loudness):.0f} dBFS at its loudest)")
    if max(motions) < _STILL:
        lines.append(f"the mouth region hardly moves ({max(motions):.2f} grey levels per frame): a still image?")
    for start, end, before, after in course.jumps:
        place = f"at {start:.1f} s" if end - start < 1 else f"between {start:.1f} and {end:.1f} s"
        lines.append(f"an edit {place}: before it {words(before / FPS)}, after it {words(after / FPS)}")
    if not course.is_constant:
        return lines
    if whole.confidence >= CONFIDENT:
        if abs(whole.offset_frames) == max_shift:
            lines.append(
                "the best offset is at the edge of the range; the true one may be outside: try --max_shift"
            )
        return lines
    if wide is not None and abs(wide) > max_shift:
        lines.append(
            f"the range of {max_shift} frames is too small: {words(wide / FPS)}, as a search of ±3 s says; "
            f"use --max_shift={min(abs(wide) + 15, 125)}"
        )
    elif better is not None:
        lines.append(
            f"within {max_shift} frames {words(whole.offset_frames / FPS)} fits best, but a search of ±3 s likes "
            f"another offset better ({words(better / FPS)}): try --max_shift={min(abs(better) + 15, 125)}"
        )
    elif not lines and whole.compared < _FEW:
        lines.append(
            f"too little to compare: only {whole.compared / 5:.1f} s of face tell offsets of {max_shift} frames; "
            "a longer film would tell"
        )
    elif not lines and pauses(audio) < _PAUSES:
        lines.append("the audio has no pauses: music, or speech under music or noise?")
    elif not lines and whole.confidence >= GUESS:
        lines.append(
            f"not sure enough: confidence {two_digits(whole.confidence)} of {CONFIDENT:.2f}; "
            + ("a longer film would tell" if whole.windows < _SHORT else "picture or sound may be poor")
        )
    elif not lines:
        lines.append(
            f"the voice fits no face (confidence {two_digits(whole.confidence)}): another person's voice, "
            f"nobody in the picture speaks, or the offset is beyond ±{max_shift} frames (--max_shift)"
        )
    return lines


def loudest_tenth(audio: np.ndarray) -> float:
    """RMS of the loudest tenth of the audio, frame by frame; full scale = 1."""
    power = np.sort(_power(audio))
    return float(np.sqrt(power[-max(len(power) // 10, 1) :].mean())) if len(power) else 0.0


def pauses(audio: np.ndarray) -> float:
    """Share of frames with less than a quarter of the power of the second around them (Saunders 1996)."""
    power = _power(audio)
    if len(power) < FPS:
        return 1.0
    around = np.convolve(power, np.ones(FPS) / FPS, mode="same")
    return float(np.mean(power < around / 4))


def _power(audio: np.ndarray) -> np.ndarray:
    """Mean square of every 40 ms; of long audio every n-th, so that ten minutes are looked at."""
    count = len(audio) // SAMPLES_PER_FRAME
    step = max(count * SAMPLES_PER_FRAME // (600 * SAMPLE_RATE), 1)
    frames = audio[: count * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
    if step > 1:
        seconds = frames[: count // FPS * FPS].reshape(-1, FPS, SAMPLES_PER_FRAME)[::step]
        frames = seconds.reshape(-1, SAMPLES_PER_FRAME)
    return np.mean(np.square(frames.astype(np.float32) / 32768), axis=1)
