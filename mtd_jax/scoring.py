"""Scores of a clip: every window of frames against the audio at every shift, and what follows from them.

Each window is encoded once; only the transformers run on the pairs (`network/folded.py`). All device work
is in jitted chunks of fixed size, so clips of any length compile nothing new. Evaluation and inference share this
module.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num, Shaped, UInt8

from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.network.folded import Folded, compare_shifts, encode_audio, encode_video, fold
from mtd_jax.network.mel import HOP, N_FFT, NUM_MEL, log_mel_of_padded
from mtd_jax.network.model import FRAME_SHAPE, ModelConfig, SyncModel
from mtd_jax.workers import usable_cores

# 25 per second, RGB; and samples at 16 kHz, int16 or float in [−1, 1).
Frames = UInt8[Array | np.ndarray, "frames 48 96 3"]
Waveform = Num[Array | np.ndarray, " samples"]
Tokens = Shaped[Array, "windows steps width"]
Scores = Float[np.ndarray, "N shifts"]

MAX_SHIFT = 15
OUT_OF_CLIP = -1000.0
LARGEST_SAMPLE = 16.0  # in units of full scale; catches int16 samples passed as float


def mel_steps(window_frames: int) -> int:
    """S = 3.2·T, rounded down: the mel columns of a window."""
    return window_frames * SAMPLES_PER_FRAME // HOP


class Chunks(NamedTuple):
    """Windows per call. Any clip is a number of such calls, so that none compiles anything new."""

    encoded: int  # per call; a multiple of 5, so that a chunk of audio starts on a whole mel column
    together: int  # of a call's windows, those that pass the video layers at once
    compared: int  # with all their shifts, per call

    def samples(self, window_frames: int) -> int:
        """Padded samples of the encoded windows of audio."""
        columns = mel_steps(self.encoded) + mel_steps(window_frames)
        return (columns - 1) * HOP + N_FFT

    @classmethod
    def best_for(cls, platform: str) -> "Chunks":
        # On CPU the activations of two windows stay in the cache. The loop over them is inside one program because
        # a program's memory comes page by page from the system at every call: up to a tenth of the student's time.
        return cls(10, 2, 5) if platform == "cpu" else cls(40, 40, 40)


class Scan(NamedTuple):
    """Scores of the windows of a stretch, and their video tokens."""

    scores: Float[np.ndarray, "windows shifts"]
    video: Shaped[np.ndarray, "windows T width"]


def lead(max_shift: int) -> int:
    """Frames of audio that `Scorer.scan` needs before the first frame of video: a whole number of mel columns."""
    return -(-max_shift // 5) * 5


class Scorer:
    """Scores clips with one model on one device. The weights are folded and placed once, when it is made.

    A later change of the model does not reach it.

    Attributes:
      config: the model's.
      device: where it computes.
      weights: the folded model, on the device.
      chunks: how a clip is cut up.
    """

    def __init__(self, model: SyncModel, device: jax.Device | None = None, chunks: Chunks | None = None):  # pyright: ignore[reportInvalidTypeForm]
        """Args: device: None = JAX's default; chunks: None = the best known for the device."""
        self.config = model.config
        self.device = device or next(iter(jnp.zeros(()).devices()))
        self.chunks = chunks or Chunks.best_for(self.device.platform)
        self.weights = jax.device_put(fold(model), self.device)
        # Kept, because memory grows with every new thread that calls XLA: a stream is scored for days.
        self._threads = ThreadPoolExecutor(usable_cores(), "scoring")

    def __call__(
        self, frames: Frames, waveform: Waveform, *, max_shift: int = MAX_SHIFT, reference_edges: bool = True
    ) -> Scores:
        """Scores window i of the frames against audio windows i − max_shift … i + max_shift.

        The protocol of docs/method.md, section 5.

        Args:
          frames: N + T of them, T = config.window_frames.
          waveform: if it covers fewer frames, N shrinks.
          max_shift: in frames.
          reference_edges: quirk of the published protocol, which its numbers contain: rows i < max_shift are
            masked on the left only, so in clips of fewer than 2·max_shift windows their entries beyond the clip's
            end hold the score of an all-zero mel. With False every entry outside the clip is −1000.

        Returns:
          float32 logits, N rows of 2·max_shift + 1. Column c is audio shifted by c − max_shift frames.

        Raises:
          ValueError: if the clip is shorter than T + 1 frames, or an argument has another shape, dtype or range.
        """
        frames, waveform = np.asarray(frames), np.asarray(waveform)
        count = _check_clip(frames, waveform, max_shift, self.config.window_frames)
        video = self._encode_video(frames[: count + self.config.window_frames - 1], 1)
        audio = self._encode_audio(np.pad(waveform, N_FFT // 2, mode="reflect"), count)
        zero = np.asarray(_encode_zero_mel(self.config, self.weights))
        edge = np.broadcast_to(zero, (max_shift, *zero.shape))
        scores = self._compare(video, np.concatenate([edge, audio, edge]), 1)
        audio_window = np.arange(count)[:, None] + np.arange(-max_shift, max_shift + 1)
        outside = (audio_window < 0) | (audio_window >= count)
        if reference_edges:
            outside[:max_shift] = audio_window[:max_shift] < 0
        return np.where(outside, np.float32(OUT_OF_CLIP), scores)

    def scan(self, frames: Frames, samples: Waveform, *, max_shift: int, every: int) -> "Scan":
        """Scores every `every`-th window of a stretch of video against audio that reaches beyond both of its ends.

        Args:
          frames: every·(n − 1) + T of them. The number of the first one in its video must be a multiple of 5, as
            mel columns meet frames at those only.
          samples: audio from `lead(max_shift)` frames before the first frame on, and N_FFT / 2 samples more,
            to `max_shift` frames beyond the last one, and N_FFT / 2 samples after that.
          max_shift: in frames.
          every: frames from one window to the next.
        """
        frames, samples = np.asarray(frames), np.asarray(samples)
        first = lead(max_shift) - max_shift
        video = self._encode_video(frames, every)
        audio = self._encode_audio(samples, lead(max_shift) + every * (len(video) - 1) + max_shift + 1)
        return Scan(self._compare(video, audio[first:], every), video)

    def compare_columns(
        self,
        video: Shaped[np.ndarray, "n T width"],
        samples: Shaped[np.ndarray, "n samples"],
    ) -> Float[np.ndarray, "n columns"]:
        """Scores encoded windows against audio that moves by single mel columns, 12.5 ms each.

        Args:
          video: tokens from `scan`.
          samples: for each window, audio of S + columns − 1 mel columns, with N_FFT / 2 samples on both sides.
        """
        size, count = self.chunks.compared, len(video)
        video = np.concatenate([video, np.zeros((size, *video.shape[1:]), video.dtype)])
        samples = np.concatenate([samples, np.zeros((size, samples.shape[1]), samples.dtype)])

        def compare(start: int) -> jax.Array:
            part = slice(start, start + size)
            return _compare_columns(self.config, self.weights, video[part], samples[part])

        return np.concatenate(jax.device_get(self._each(compare, range(0, count, size))))[:count]

    def _encode_video(self, frames: Frames, every: int) -> Shaped[np.ndarray, "windows T width"]:
        """Tokens of the windows that begin at frames 0, every, 2·every, …"""
        chunks, window = self.chunks, self.config.window_frames
        count = (len(frames) - window) // every + 1
        # Calls cover whole chunks; what lies beyond the end is computed and dropped.
        frames = np.concatenate([frames, np.zeros((every * chunks.encoded, *FRAME_SHAPE), np.uint8)])
        length = every * (chunks.encoded - 1) + window

        def encode(start: int) -> jax.Array:
            part = frames[every * start : every * start + length]
            return _encode_frames(self.config, chunks, every, self.weights, part)

        tokens = self._each(encode, range(0, count, chunks.encoded))
        return np.concatenate(jax.device_get(tokens))[:count]

    def _encode_audio(self, samples: Waveform, count: int) -> Shaped[np.ndarray, "count S width"]:
        """Tokens of `count` consecutive windows of audio. Args: samples: N_FFT / 2 more of them on both sides."""
        chunks = self.chunks
        starts, length = range(0, count, chunks.encoded), chunks.samples(self.config.window_frames)
        missing = mel_steps(starts[-1]) * HOP + length - len(samples)
        samples = np.pad(samples, (0, max(0, missing)))

        def encode(start: int) -> jax.Array:
            first = mel_steps(start) * HOP
            return _encode_audio(self.config, chunks, self.weights, samples[first : first + length])

        return np.concatenate(jax.device_get(self._each(encode, starts)))[:count]

    def _compare(
        self, video: Shaped[np.ndarray, "n T width"], audio: Shaped[np.ndarray, "m S width"], every: int
    ) -> Scores:
        """Logits of video window i against audio windows every·i to every·i + shifts − 1, which there all are."""
        windows, count = self.chunks.compared, len(video)
        shifts = len(audio) - every * (count - 1)
        audio = np.concatenate([audio, np.broadcast_to(audio[:1], (every * windows, *audio.shape[1:]))])
        video = np.concatenate([video, np.zeros((windows, *video.shape[1:]), video.dtype)])

        def compare(start: int) -> jax.Array:
            end = every * (start + windows - 1) + shifts
            parts = video[start : start + windows], audio[every * start : end]
            return _score_chunk(self.config, every, self.weights, *parts)

        return np.concatenate(jax.device_get(self._each(compare, range(0, count, windows))))[:count]

    def _each(self, call: Callable[[int], Any], starts: range) -> list:
        """[call(start) for start in starts]; on CPU several at a time.

        One alone leaves cores idle between its parallel parts: two of them at a time take two thirds of the time.
        """
        if self.device.platform != "cpu":
            return [call(start) for start in starts]
        return list(self._threads.map(lambda start: jax.block_until_ready(call(start)), starts))


def score_clip(
    model: SyncModel,
    frames: Frames,
    waveform: Waveform,
    *,
    max_shift: int = MAX_SHIFT,
    reference_edges: bool = True,
) -> Scores:
    """`Scorer(model)(…)`, see there. For several clips make one `Scorer`: it folds the weights once."""
    return Scorer(model)(frames, waveform, max_shift=max_shift, reference_edges=reference_edges)


def _check_clip(frames: np.ndarray, waveform: np.ndarray, max_shift: int, window: int) -> int:
    """The number of windows N; `ValueError` for what cannot be scored."""
    if frames.ndim != 4 or frames.shape[1:] != FRAME_SHAPE or frames.dtype != np.uint8:
        raise ValueError(f"frames: expected uint8 (N + {window}, 48, 96, 3), got {frames.dtype} {frames.shape}")
    if isinstance(max_shift, bool) or not isinstance(max_shift, int | np.integer) or max_shift < 0:
        raise ValueError(f"max_shift: expected a whole number, 0 or more, got {max_shift}")
    if waveform.ndim != 1 or waveform.dtype not in (np.int16, np.float16, np.float32, np.float64):
        got = f"{waveform.dtype} {waveform.shape}"
        raise ValueError(f"waveform: expected int16 or float (samples,), mono at 16 kHz, got {got}")
    check_range(waveform)
    usable = min(len(frames), len(waveform) // SAMPLES_PER_FRAME)
    if usable - window < 1:
        raise ValueError(f"clip: expected at least {window + 1} frames with audio, got {usable}")
    return usable - window


def check_range(waveform: np.ndarray) -> None:
    """`ValueError` for float samples that are not finite, or that are int16 read as float."""
    if waveform.dtype != np.int16 and not (peak := np.abs(waveform).max(initial=0)) < LARGEST_SAMPLE:
        raise ValueError(f"waveform: expected finite float in [−1, 1), got ±{peak}; divide int16 values by 32768")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _encode_frames(config: ModelConfig, chunks: Chunks, every: int, weights: Folded, frames: Frames) -> Tokens:
    """Video tokens of the chunks.encoded windows of every·(chunks.encoded − 1) + T frames."""
    together = chunks.together if every == 1 else 1
    starts = every * np.arange(0, chunks.encoded, together)
    groups = frames[starts[:, None] + np.arange(together + config.window_frames - 1)]
    tokens = lax.map(lambda group: encode_video(config, weights, group), groups)
    return tokens.reshape(-1, *tokens.shape[2:])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode_audio(config: ModelConfig, chunks: Chunks, weights: Folded, samples: Waveform) -> Tokens:
    """Audio tokens of chunks.encoded windows, from padded samples."""
    mel = log_mel_of_padded(samples)
    first = np.array([mel_steps(i) for i in range(chunks.encoded)])  # int(3.2·i), as published
    return encode_audio(config, weights, mel[first[:, None] + np.arange(mel_steps(config.window_frames))])


@functools.partial(jax.jit, static_argnums=0)
def _encode_zero_mel(config: ModelConfig, weights: Folded) -> Shaped[Array, "S width"]:
    return encode_audio(config, weights, jnp.zeros((1, mel_steps(config.window_frames), NUM_MEL)))[0]


@functools.partial(jax.jit, static_argnums=0)
def _compare_columns(
    config: ModelConfig, weights: Folded, video: Tokens, samples: Shaped[Array, "windows samples"]
) -> Float[Array, "windows columns"]:
    """Logits of each video window against the audio that begins at each mel column of its own samples."""
    steps = mel_steps(config.window_frames)
    mel = log_mel_of_padded(samples)
    columns = mel.shape[1] - steps + 1
    parts = mel[:, np.arange(columns)[:, None] + np.arange(steps)].reshape(-1, steps, NUM_MEL)
    return compare_shifts(config, weights, video, encode_audio(config, weights, parts), every=columns)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score_chunk(config: ModelConfig, every: int, weights: Folded, video: Tokens, audio: Tokens) -> Array:
    return compare_shifts(config, weights, video, audio, every)


def context_scores(scores: Scores, context: int, window_frames: int = 5) -> Scores:
    """Averages each row with its neighbours, so that a decision rests on `context` frames (docs/method.md, 5).

    Args: context K ≥ window_frames: n = K − T + 1 rows, from i − ⌊n/2⌋ to i + ⌊(n − 1)/2⌋, cut at the ends of the
      clip.
    """
    if scores.ndim != 2 or len(scores) < 1 or scores.shape[1] % 2 == 0:
        raise ValueError(f"scores: expected (N, 2·max_shift + 1) with N ≥ 1, got {scores.shape}")
    rows = context - window_frames + 1
    if rows < 1:
        raise ValueError(f"context: expected at least the window's {window_frames} frames, got {context}")
    count = len(scores)
    sums = np.concatenate([np.zeros((1, scores.shape[1])), np.cumsum(scores, axis=0, dtype=np.float64)])
    first = np.maximum(np.arange(count) - rows // 2, 0)
    end = np.minimum(np.arange(count) + (rows - 1) // 2 + 1, count)
    return (sums[end] - sums[first]) / (end - first)[:, None]


def window_offsets(scores: Scores, context: int, window_frames: int = 5) -> Int[np.ndarray, " N"]:
    """Offset of each window in frames, positive = the audio is early: delay it to fix."""
    max_shift = scores.shape[1] // 2
    return max_shift - np.argmax(context_scores(scores, context, window_frames), axis=1)


def context_accuracy(scores: Scores, context: int, tolerance: int = 1, window_frames: int = 5) -> float:
    """Share of a clip's windows whose offset is within ±tolerance frames of 0; the clip is taken to be in sync.

    Args: scores: of `score_clip`; context K; tolerance in frames.
    """
    return float(np.mean(np.abs(window_offsets(np.asarray(scores), context, window_frames)) <= tolerance))
