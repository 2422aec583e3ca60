"""Waveform → log-mel spectrogram, in jnp: usable on any device, inside jit, on any leading axes."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

SAMPLE_RATE = 16_000
N_FFT = 800
HOP = 200
NUM_MEL = 80
FMIN, FMAX = 55.0, 7600.0
# What a checkpoint records, so that its weights are never fed another spectrogram unnoticed.
MEL_SETTINGS = {
    "sample_rate": SAMPLE_RATE, "n_fft": N_FFT, "hop": HOP, "num_mel": NUM_MEL, "fmin": FMIN, "fmax": FMAX
}  # fmt: skip


def log_mel(waveform: Shaped[Array | np.ndarray, "*batch samples"]) -> Float[Array, "*batch 1+samples//200 80"]:
    """Normalised log-mel spectrogram: 80 Slaney mel bands of a magnitude STFT, in dB, mapped to [−4, 4].

    As in docs/method.md, section 1.

    Args:
      waveform: 16 kHz; float in [−1, 1) or int16. At least 401 samples.

    Returns:
      float32; float64 for a float64 waveform under `jax_enable_x64`. The last column of a training chunk is to be
      dropped.

    Raises:
      ValueError: if the waveform is too short for the reflected border.
    """
    samples = waveform.shape[-1]
    if samples <= N_FFT // 2:
        raise ValueError(f"waveform: expected more than {N_FFT // 2} samples, got {samples}; one frame has 640")
    border = [(0, 0)] * (waveform.ndim - 1) + [(N_FFT // 2, N_FFT // 2)]
    return log_mel_of_padded(jnp.pad(waveform, border, mode="reflect"))


def log_mel_of_padded(padded: Shaped[Array | np.ndarray, "*batch padded"]) -> Float[Array, "*batch steps 80"]:
    """`log_mel` of a waveform that has its 400 samples of border already."""
    if padded.dtype == jnp.int16:
        padded = padded.astype(jnp.float32) / 32768
    elif not jnp.issubdtype(padded.dtype, jnp.floating):
        raise ValueError(f"waveform: expected int16, or float in [-1, 1), got {padded.dtype}")
    padded = padded.astype(jnp.promote_types(padded.dtype, jnp.float32))
    steps = 1 + (padded.shape[-1] - N_FFT) // HOP
    hops = padded[..., : (steps + N_FFT // HOP - 1) * HOP].reshape(*padded.shape[:-1], -1, HOP)
    chunks = jnp.concatenate([hops[..., k : k + steps, :] for k in range(N_FFT // HOP)], axis=-1)
    window = np.expand_dims(periodic_hann(), tuple(range(chunks.ndim - 1)))
    magnitude = jnp.abs(jnp.fft.rfft(chunks * window))
    mel = jnp.dot(magnitude, mel_filterbank().T, precision="highest")
    decibel = 20 * jnp.log10(jnp.maximum(mel, 1e-5)) - 20
    return jnp.clip(8 * (decibel + 100) / 100 - 4, -4, 4)


def periodic_hann() -> Float[np.ndarray, "800"]:
    """The window of the Fourier transform, float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)


@functools.cache
def mel_filterbank() -> Float[np.ndarray, "80 401"]:
    """float32 triangular filters on the Slaney mel scale, each of unit area (Slaney 1998)."""
    edges = _mel_to_hz(np.linspace(_hz_to_mel(FMIN), _hz_to_mel(FMAX), NUM_MEL + 2))
    bins = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT
    low, centre, high = (edges[i : i + NUM_MEL, None] for i in range(3))
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    return (np.maximum(triangles, 0) * 2 / (high - low)).astype(np.float32)


# The Slaney scale: linear below 1 kHz (15 mel), logarithmic above, 27 mel per factor 6.4.
def _hz_to_mel(hz: float) -> np.ndarray:
    return np.where(hz < 1000, 3 * hz / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
