"""3-D convolution over (height, width, time) through 2-D ones: XLA's own 3-D kernels are many times slower.

Time has stride 1 everywhere in this family, so a 3-D convolution is a sum over temporal taps, and the taps can be
folded into the channels of one 2-D convolution in two ways. Both are exact rearrangements, not approximations.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Taps = Sequence[Float[Array | np.ndarray, "k_height k_width in_channels out_channels"]]  # k_time of them
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Wider than this, the zeros of a block-Toeplitz kernel cost more than its better shape gains (2 CPU cores, T = 5).
_TOEPLITZ_MAX_CHANNELS = 320


def conv3d(
    x: Float[Array, "batch height width time in_channels"],
    kernel: Float[Array, "k_height k_width k_time in_channels out_channels"],
    stride_hw: Sequence[int],
    padding_hwt: Sequence[int],
    precision: lax.Precision | None = None,
) -> Float[Array, "batch out_height out_width out_time out_channels"]:
    """Convolves `x` with `kernel`, of the same dtype, choosing the cheaper of the two foldings.

    Args:
      stride_hw: strides over height and width; the stride over time is 1.
      padding_hwt: zeros added on both sides of height, width and time.
    """
    if kernel.shape[2] == 1:
        return _conv_taps(x, kernel, stride_hw, padding_hwt, precision)
    if x.shape[3] * max(kernel.shape[3:]) <= _TOEPLITZ_MAX_CHANNELS:
        return _conv_toeplitz(x, kernel, stride_hw, padding_hwt, precision)
    return _conv_taps(x, kernel, stride_hw, padding_hwt, precision)


def _conv_toeplitz(x, kernel, stride_hw, padding_hwt, precision):
    """All of time in the channels: (T·in) → (T_out·out), with a kernel that is block-Toeplitz in time."""
    batch, height, width, time_in, channels_in = x.shape
    k_time, channels_out = kernel.shape[2], kernel.shape[4]
    pad_time = padding_hwt[2]
    time_out = time_in + 2 * pad_time - k_time + 1
    tap = np.arange(time_in)[:, None] - np.arange(time_out)[None, :] + pad_time
    is_tap = (np.arange(k_time)[:, None, None] == tap).astype(np.float32)  # (k_time, time_in, time_out), 0/1
    wide = jnp.einsum("hwkio,kab->hwaibo", kernel, jnp.asarray(is_tap, kernel.dtype), precision=precision)
    wide = wide.reshape(*kernel.shape[:2], time_in * channels_in, time_out * channels_out)
    folded = x.reshape(batch, height, width, time_in * channels_in)
    y = _conv2d(folded, wide, stride_hw, padding_hwt[:2], precision)
    return y.reshape(*y.shape[:3], time_out, channels_out)


def _conv_taps(x, kernel, stride_hw, padding_hwt, precision):
    """One image per output time, its temporal neighbourhood in the channels: (k_time·in) → out."""
    batch, height, width, time_in, channels_in = x.shape
    k_height, k_width, k_time, _, channels_out = kernel.shape
    pad_time = padding_hwt[2]
    time_out = time_in + 2 * pad_time - k_time + 1
    images = jnp.moveaxis(x, 3, 1)
    images = jnp.pad(images, ((0, 0), (pad_time, pad_time), (0, 0), (0, 0), (0, 0)))
    taps = jnp.concatenate([images[:, k : k + time_out] for k in range(k_time)], axis=-1)
    taps = taps.reshape(batch * time_out, height, width, k_time * channels_in)
    tall = kernel.reshape(k_height, k_width, k_time * channels_in, channels_out)
    y = _conv2d(taps, tall, stride_hw, padding_hwt[:2], precision)
    return jnp.moveaxis(y.reshape(batch, time_out, *y.shape[1:]), 1, 3)


def _conv2d(x, kernel, stride, padding, precision) -> jax.Array:
    pairs = [(p, p) for p in padding]
    return lax.conv_general_dilated(x, kernel, stride, pairs, dimension_numbers=_DIMENSIONS, precision=precision)


def conv3d_time_first(
    x: Float[Array, "time batch height width in_channels"],
    taps: Taps,
    stride_hw: Sequence[int],
    padding_hwt: Sequence[int],
    precision: lax.Precision | None = None,
) -> Float[Array, "out_time batch out_height out_width out_channels"]:
    """`conv3d` for inference, with time as the first axis; chooses the fastest form for this backend.

    On CPU the temporal taps are 2-D convolutions of their own, summed: those that would meet the temporal padding
    are skipped (2 of 15 for T = 5 and three taps), no kernel is filled up with zeros, and little is copied. In
    most layers of student and teacher one core does 190–220 useful GFLOP/s, of 240 in a matrix product, where the
    foldings above do 15–190 (AMD EPYC, Zen 5, jax 0.10.2). Accelerators want few large products: the foldings.

    Args: stride_hw, padding_hwt: as for `conv3d`.
    """

    def folded(x, *taps):
        y = conv3d(jnp.moveaxis(x, 0, 3), jnp.stack(taps, axis=2), stride_hw, padding_hwt, precision)
        return jnp.moveaxis(y, 3, 0)

    def summed(x, *taps):
        return _conv_summed(x, taps, stride_hw, padding_hwt, precision)

    # By the platform that the program is compiled for: the process may have others.
    return lax.platform_dependent(x, *taps, cpu=summed, default=folded)


def _conv_summed(x, taps, stride_hw, padding_hwt, precision):
    """Sum over temporal taps of the 2-D convolutions of the images that each tap really meets."""
    time_in, batch = x.shape[:2]
    pad_time = padding_hwt[2]
    time_out = time_in + 2 * pad_time - len(taps) + 1
    # The middle tap first: where the padding keeps the length, it meets every image.
    total = None
    for tap in sorted(range(len(taps)), key=lambda tap: abs(tap - pad_time)):
        shift = tap - pad_time  # output t reads input t + shift
        first, end = max(0, -shift), min(time_out, time_in - shift)
        if first < end:
            images = x[first + shift : end + shift].reshape(-1, *x.shape[2:])
            y = _conv2d(images, taps[tap], stride_hw, padding_hwt[:2], precision)
            y = y.reshape(end - first, batch, *y.shape[1:])
            if total is None:
                total = jnp.zeros((time_out, *y.shape[1:]), y.dtype)
            total = total.at[first:end].add(y)
    assert total is not None
    return total


def conv3d_windows(
    frames: Float[Array, "frames height width in_channels"],
    taps: Taps,
    window: int,
    stride_hw: Sequence[int],
    padding_hwt: Sequence[int],
    precision: lax.Precision | None = None,
) -> Float[Array, "out_time windows out_height out_width out_channels"]:
    """Convolves all overlapping windows of consecutive frames, each frame only once.

    A convolution is linear, so windows that share a frame share what each temporal tap makes of it: the taps of a
    frame are the output channels of one 2-D convolution, and a window sums those of its frames.

    Args:
      window: T.
      stride_hw, padding_hwt: as for `conv3d`; every window has zeros of its own before and after it.

    Returns:
      As `conv3d_time_first` of the stacked windows.
    """
    windows, pad_time = len(frames) - window + 1, padding_hwt[2]
    y = _conv2d(frames, jnp.concatenate(taps, axis=-1), stride_hw, padding_hwt[:2], precision)
    y = y.reshape(*y.shape[:3], len(taps), -1)

    def image(time):
        met = [t for t in range(window) if 0 <= t - time + pad_time < len(taps)]
        return sum(y[t : t + windows, :, :, t - time + pad_time] for t in met)

    return jnp.stack([image(time) for time in range(window + 2 * pad_time - len(taps) + 1)])
