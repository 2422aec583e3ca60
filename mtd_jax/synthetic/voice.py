"""Source-filter synthesis (Fant 1960): turns the acoustic tracks of an utterance into a 16 kHz waveform."""

import dataclasses

import numpy as np

from mtd_jax.data.clip import SAMPLE_RATE
from mtd_jax.synthetic.speech import TRACK_RATE
from mtd_jax.synthetic.variety import AS_DESIGNED, Spread, Variety

_HOP = 80  # 5 ms
_WINDOW = 320  # samples, 20 ms
_FFT = 512
_FORMANT_WIDTHS = (70.0, 90.0, 140.0, 220.0, 300.0)  # Hz
_UPPER_FORMANTS = (3550.0, 4550.0)  # F4, F5 in Hz


@dataclasses.dataclass(frozen=True)
class Voice:
    """How a speaker sounds.

    Attributes:
      pitch_hz: mean fundamental frequency.
      pitch_range: size of the intonation's steps, in octaves.
      tract: scales all formants; shorter vocal tracts have larger values.
      tilt: the source spectrum falls as frequency^−tilt above 250 Hz.
      breath: level of the breath noise.
      rate: speaking rate, as in `utter`.
    """

    pitch_hz: float
    pitch_range: float
    tract: float
    tilt: float
    breath: float
    rate: float


def sample_voice(rng: np.random.Generator, variety: Variety = AS_DESIGNED) -> Voice:
    """Draws a voice. Low voices tend to have long vocal tracts."""
    sound = Spread(rng, variety.voice)
    height = sound.uniform()
    return Voice(
        pitch_hz=float(95 * 2.3**height * sound.uniform(0.9, 1.1)),
        pitch_range=max(float(sound.uniform(0.06, 0.2)), 0.0),
        tract=float(0.9 + 0.24 * height + sound.uniform(-0.04, 0.04)),
        tilt=float(sound.uniform(0.45, 0.95)),
        breath=max(float(sound.uniform(0.02, 0.07)), 0.0),
        rate=float(sound.uniform(0.88, 1.15)),
    )


def speak(rng: np.random.Generator, voice: Voice, tracks: np.ndarray) -> np.ndarray:
    """Synthesises speech.

    Args:
      rng: the only source of randomness.
      voice: the speaker.
      tracks: float64 (milliseconds, 7), see `Utterance.voice`.

    Returns:
      int16 (16 · milliseconds,), 16 kHz mono, with some background noise.
    """
    samples = len(tracks) * SAMPLE_RATE // TRACK_RATE
    centres = np.arange(samples // _HOP + 1) * (_HOP * TRACK_RATE // SAMPLE_RATE)
    at_hops = tracks[np.minimum(centres, len(tracks) - 1)].astype(np.float32)
    hertz = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE).astype(np.float32)

    filter_gain = _formant_gain(at_hops[:, :3] * np.float32(voice.tract), hertz)
    voiced, frication = at_hops[:, 3:4], at_hops[:, 4:5]
    slope = (1 + (hertz / 250) ** 2) ** np.float32(-0.5 * voice.tilt)
    noise_hz, noise_width = at_hops[:, 5:6] * np.float32(voice.tract), at_hops[:, 6:7]
    hiss = np.float32(0.4) / (1 + ((hertz - noise_hz) / (noise_width / 2)) ** 2)
    pulse_gain = voiced * filter_gain * slope
    noise_gain = frication * hiss + np.float32(voice.breath * 0.3) * voiced * filter_gain * slope**0.5
    spectrum = _frames(_pulses(rng, voice, samples)) * pulse_gain
    spectrum += _frames(rng.standard_normal(samples, dtype=np.float32)) * noise_gain
    clean = _overlap_add(spectrum * _equaliser(rng, hertz), samples)

    power = float(np.mean(clean**2)) + 1e-12
    hum = _overlap_add(_frames(rng.standard_normal(samples, dtype=np.float32)) * _room(rng, hertz), samples)
    hum *= np.sqrt(power / 10 ** (rng.uniform(18, 35) / 10) / float(np.mean(hum**2)))
    loud = 10 ** (rng.uniform(-28, -20) / 20)
    mixed = (clean + hum) * (loud / np.sqrt(power))
    return np.rint(np.clip(mixed, -1, 32767 / 32768) * 32768).clip(-32768, 32767).astype(np.int16)


def _pulses(rng: np.random.Generator, voice: Voice, samples: int) -> np.ndarray:
    """Glottal pulses with a random intonation. Their energy per second does not depend on the pitch."""
    seconds = samples / SAMPLE_RATE
    knots = rng.normal(0, voice.pitch_range, int(seconds * 2.5) + 3).cumsum()
    knots -= np.linspace(knots[0], knots[-1], len(knots))
    jitter = rng.normal(0, 0.01, int(seconds * 100) + 3)
    time = np.arange(samples) / SAMPLE_RATE
    octaves = np.interp(time, np.linspace(0, seconds, len(knots)), np.clip(knots, -0.6, 0.6))
    octaves += np.interp(time, np.linspace(0, seconds, len(jitter)), jitter)
    phase = rng.uniform() + np.cumsum(voice.pitch_hz * 2**octaves / SAMPLE_RATE)
    cycle = np.floor(phase)
    starts = np.flatnonzero(np.diff(cycle, prepend=cycle[:1]))
    step = phase[starts] - phase[starts - 1]
    late = (
        phase[starts] - cycle[starts]
    ) / step  # the fraction of a sample by which the pulse precedes its sample
    height = 1 / np.sqrt(step)
    pulses = np.zeros(samples, np.float32)
    pulses[starts] = height * (1 - late)
    pulses[starts - 1] += height * late
    return pulses


def _formant_gain(formants: np.ndarray, hertz: np.ndarray) -> np.ndarray:
    """Magnitude response of five resonances in cascade, float32 (hops, bins)."""
    gain = np.ones((len(formants), len(hertz)), np.float32)
    squared = hertz**2
    tract = formants[:, 2:3] * 0 + 1
    for index, width in enumerate(_FORMANT_WIDTHS):
        if index < 3:
            centre = formants[:, index : index + 1] ** 2
        else:
            centre = tract * np.float32(_UPPER_FORMANTS[index - 3] ** 2)
        gain *= centre / np.sqrt((squared - centre) ** 2 + np.float32(width**2) * squared)
    return gain


def _equaliser(rng: np.random.Generator, hertz: np.ndarray) -> np.ndarray:
    """The response of microphone and room: a smooth random curve of a few dB, float32 (bins,)."""
    position = np.log2(1 + hertz / 150) / np.log2(1 + 8000 / 150)
    decibels = np.zeros_like(position)
    for k in (1, 2, 3, 4):
        decibels += rng.normal(0, 2.2) * np.cos(np.pi * k * position)
    return (10 ** (decibels / 20)).astype(np.float32)


def _room(rng: np.random.Generator, hertz: np.ndarray) -> np.ndarray:
    """Spectrum of the background noise, anything between white and brown, float32 (bins,)."""
    return ((1 + hertz / 120) ** -rng.uniform(0, 1.2)).astype(np.float32)


def _frames(signal: np.ndarray) -> np.ndarray:
    """Short-time spectra with a Hann window centred on each hop, complex64 (hops, bins)."""
    padded = np.pad(signal, _WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)).astype(np.float32)
    framed = np.zeros((len(windows), _FFT), np.float32)
    offset = (_FFT - _WINDOW) // 2
    framed[:, offset : offset + _WINDOW] = windows * hann
    return np.fft.rfft(framed, axis=1)


def _overlap_add(spectra: np.ndarray, samples: int) -> np.ndarray:
    """The inverse of `_frames`. At every sample four Hann windows overlap and sum to 2."""
    pieces = np.fft.irfft(spectra, _FFT, axis=1).astype(np.float32)
    output = np.zeros((len(pieces) + _FFT // _HOP + 1) * _HOP, np.float32)
    for start in range(0, _FFT, _HOP):  # one slice of every piece at once: they do not overlap
        part = pieces[:, start : start + _HOP]
        target = output[start : start + len(pieces) * _HOP].reshape(-1, _HOP)
        target[:, : part.shape[1]] += part
    return output[_FFT // 2 : _FFT // 2 + samples] / 2
