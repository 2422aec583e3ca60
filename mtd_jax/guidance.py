"""The network inside other people's programs: a loss for makers of talking faces, and an encoder.

Nothing here changes a model: dropout is off and BatchNorm uses its stored statistics.
"""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from mtd_jax.data.clip import SAMPLES_PER_FRAME
from mtd_jax.network.layers import at_least_float32
from mtd_jax.network.mel import NUM_MEL, log_mel
from mtd_jax.network.model import FRAME_SHAPE, AudioTokens, Features, Logits, SyncModel, VideoTokens
from mtd_jax.scoring import check_range, mel_steps

_DARK = 2.0  # the largest pixel of frames that are meant to be in [0, 255] and are in [0, 1]
_BELOW = -8.0  # a generator that learns may well go a little below 0
_BLUE = 8.0  # by so many levels blue exceeds red in no face
# RGB in [0, 255], T consecutive frames: whole faces of 96×96, or their lower halves.
Faces = Num[Array | np.ndarray, "batch T rows 96 3"]
# 16 kHz in [−1, 1), 640 samples a frame; or the log-mel spectrogram of those, S = 3.2·T columns.
Sound = Float[Array | np.ndarray, "batch samples"] | Float[Array | np.ndarray, "batch S 80"]


class Embedding(NamedTuple):
    """Tokens of windows of T frames, as the prenets make them; S = 3.2·T columns of 12.5 ms, rounded down.

    Token t of `video` is about frame t, token s of `audio` about the sound from s · 12.5 ms on.
    """

    video: VideoTokens
    audio: AudioTokens


def sync_loss(
    model: SyncModel, frames: Faces, sound: Sound, *, offset: int = 0, margin: float = 0.0
) -> Float[Array, ""]:
    """How far windows are from being in sync in the eyes of a frozen model; its gradient says what to change.

    The mean of softplus(margin − logit), which with margin 0 is the cross-entropy against "in sync": what Wav2Lip
    (Prajwal et al. 2020) asks of its expert. Differentiable in the frames, in the sound, and in nothing of the
    model. In a model that computes in bfloat16 the loss is float32 all the same.

    Args:
      frames: any float dtype; whole faces are cut to their lower halves here.
      sound: of the same windows. With an offset, a waveform with |offset| frames more at both ends.
      offset: frames by which the audio is to be early (negative: late), as verdicts count.
      margin: logit above which a window counts as good.

    Raises:
      ValueError: no model, or a shape that does not fit; the message says what was expected.
    """
    _check_model(model)
    pixels = _lower_halves(frames)
    mel = _mel(sound, pixels.shape[1], offset)
    _check_counts(pixels, mel)
    logits, _ = _seen(*nnx.split(model), pixels, mel)
    return jnp.mean(jax.nn.softplus(margin - at_least_float32(logits)))


def embed(model: SyncModel, frames: Faces, sound: Sound) -> Embedding:
    """The prenets' tokens of windows: features of mouths and speech that belong together.

    Args: as `sync_loss`.

    Raises:
      ValueError: as `sync_loss`.
    """
    _check_model(model)
    pixels = _lower_halves(frames)
    mel = _mel(sound, pixels.shape[1], 0)
    _check_counts(pixels, mel)
    _, features = _seen(*nnx.split(model), pixels, mel)
    return Embedding(features.video_tokens, features.audio_tokens)


def _check_model(model: object) -> None:
    if not isinstance(model, SyncModel):
        raise ValueError(f"model: expected a SyncModel, got {type(model).__name__}; load_model(NAME) gives one")


def _check_counts(pixels: Array, mel: Array) -> None:
    if len(mel) != len(pixels):
        raise ValueError(f"sound: expected as many windows as frames, {len(pixels)}, got {len(mel)}")


@functools.partial(jax.jit, static_argnums=0)
def _seen(graphdef: nnx.GraphDef, state: nnx.State, pixels: Array, mel: Array) -> tuple[Logits, Features]:
    """Compiled as a whole, for callers that are not: op by op it would take many times as long."""
    model = nnx.merge(graphdef, state)
    return model.compare(model.encode_pixels(pixels), model.encode_audio(mel))


def _lower_halves(frames: Faces) -> Float[Array, "batch T 48 96 3"]:
    """Frames as the network takes them; a warning where their numbers look like something else."""
    rows, columns, channels = FRAME_SHAPE
    if not hasattr(frames, "ndim"):
        raise ValueError(f"frames: expected an array, got {type(frames).__name__}")
    if frames.ndim and not len(frames):
        raise ValueError("frames: expected at least one window, got none")
    if frames.ndim != 5 or frames.shape[2] not in (rows, 2 * rows) or frames.shape[3:] != (columns, channels):
        raise ValueError(
            f"frames: expected (batch, T, 96, 96, 3), or lower halves (batch, T, 48, 96, 3), got {frames.shape}"
        )
    if not isinstance(frames, Tracer):  # under jit and grad there are no numbers to look at
        look_at(np.asarray(frames))
    frames = jnp.asarray(frames)
    return at_least_float32(frames if jnp.issubdtype(frames.dtype, jnp.floating) else frames.astype(jnp.float32))[
        :, :, -rows:
    ]


def look_at(frames: np.ndarray) -> None:
    """Warns where frames look like something else than RGB in [0, 255]; `ValueError` if they are not finite."""
    smallest, largest = float(frames.min(initial=0)), float(frames.max(initial=0))
    if not np.isfinite(largest - smallest):
        raise ValueError("frames: expected finite numbers, got NaN or infinity")
    if 0 < largest <= _DARK:
        scale = "255" if smallest >= 0 else "127.5, then add 127.5"
        said = f"got {smallest:g} to {largest:g}; multiply them by {scale}"
        warnings.warn(f"frames: expected 0 to 255, {said}", stacklevel=4)
    elif smallest < _BELOW:
        warnings.warn(f"frames: expected 0 to 255, got {smallest:g} to {largest:g}", stacklevel=4)
    red, _, blue = frames.mean(axis=(0, 1, 2, 3), dtype=np.float64) * (255 if largest <= _DARK else 1)
    if blue > red + _BLUE:
        warnings.warn("frames: more blue than red, which no face has; expected RGB, not BGR", stacklevel=4)


def _mel(sound: Sound, window: int, offset: int) -> Float[Array, "batch S 80"]:
    """The log-mel spectrogram of windows of sound."""
    steps = mel_steps(window)
    if not hasattr(sound, "ndim"):
        raise ValueError(f"sound: expected an array, got {type(sound).__name__}")
    if isinstance(offset, bool) or not isinstance(offset, int | np.integer):
        raise ValueError(f"offset: expected a whole number of frames, got {offset!r}")
    if sound.ndim == 3:
        if sound.shape[1:] == (NUM_MEL, steps):
            raise ValueError(f"sound: expected (batch, {steps}, 80), got {sound.shape}; swap the last two axes")
        if sound.shape[1:] != (steps, NUM_MEL):
            raise ValueError(
                f"sound: expected (batch, {steps}, 80) for windows of {window} frames, got {sound.shape}"
            )
        if offset:
            raise ValueError("sound: an offset needs a waveform, got a spectrogram")
        if not isinstance(sound, Tracer) and not np.isfinite(np.asarray(sound, np.float32)).all():
            raise ValueError("sound: expected a finite spectrogram, got NaN or infinity")
        return jnp.asarray(sound)
    needed = (window + 2 * abs(offset)) * SAMPLES_PER_FRAME
    if sound.ndim != 2 or sound.shape[1] != needed:
        raise ValueError(
            f"sound: expected a waveform (batch, {needed}), {SAMPLES_PER_FRAME} samples for each of {window} "
            f"frames{f' and {abs(offset)} more at both ends' if offset else ''}, got {sound.shape}"
        )
    start = (abs(offset) - offset) * SAMPLES_PER_FRAME
    if not isinstance(sound, Tracer):
        check_range(np.asarray(sound))
    return log_mel(sound[:, start : start + window * SAMPLES_PER_FRAME])[:, :-1]
