"""Writes .mp4 files: H.264 video and AAC audio, aligned to the sample."""

import os
from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer

from mtd_jax.data.clip import FPS, SAMPLE_RATE
from mtd_jax.storage import atomic

_AAC_FRAME = 1024


def write_mp4(path: str | os.PathLike, frames: np.ndarray, waveform: np.ndarray, *, fps: int | Fraction = FPS,
              sample_rate: int = SAMPLE_RATE, audio_delay_samples: int = 0) -> None:  # fmt: skip
    """Writes one video file, completely or not at all.

    Frame f is shown at f / fps seconds, sample s is heard at (s + audio_delay_samples) / sample_rate. The audio
    keeps its length: the delay cuts off what it moves past the end or before the start.

    Args:
      path: ends in .mp4; its folder must exist.
      frames: uint8 (n, height, width, 3) RGB, n ≥ 1, height and width even.
      waveform: int16 (samples,), mono.
      fps: frames per second.
      sample_rate: of the waveform, in Hz.
      audio_delay_samples: positive = the audio is late.

    Raises:
      ValueError: a wrong shape or dtype.
      UserError: the file cannot be written.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"expected uint8 frames (n, height, width, 3), got {frames.dtype} {frames.shape}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        size = f"{frames.shape[2]}×{frames.shape[1]}"
        raise ValueError(f"H.264 needs frames of even width and height, got {size}: crop or pad a pixel")
    if waveform.dtype != np.int16 or waveform.ndim != 1:
        raise ValueError(f"expected an int16 waveform (samples,), got {waveform.dtype} {waveform.shape}")
    with atomic(path) as scratch, av.open(str(scratch), "w", format="mp4") as container:
        _write_streams(container, frames, delay(waveform, audio_delay_samples), Fraction(fps), sample_rate)


def delay(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Moves a waveform later by `samples` (earlier if negative). Keeps the length; silence fills the gap."""
    moved = np.zeros_like(waveform)
    if samples >= 0:
        moved[samples:] = waveform[: max(len(waveform) - samples, 0)]
    else:
        moved[:samples] = waveform[-samples:]
    return moved


def _write_streams(
    container: OutputContainer, frames: np.ndarray, waveform: np.ndarray, fps: Fraction, sample_rate: int
) -> None:
    video = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
    video.height, video.width = frames.shape[1:3]
    video.pix_fmt = "yuv420p"
    video.codec_context.time_base = 1 / fps
    video.codec_context.thread_count = 1  # x264 output depends on the thread count
    audio = container.add_stream("aac", rate=sample_rate, layout="mono", options={"b": "96k"})
    samples = waveform.astype(np.float32)[None] / 32768
    written = 0
    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = index, 1 / fps
        container.mux(video.encode(frame))
        # Interleaved, so that players need not buffer one stream while they look for the other.
        while written * fps <= index * sample_rate and written < len(waveform):
            written = _write_audio(container, audio, samples, written, sample_rate)
    while written < len(waveform):
        written = _write_audio(container, audio, samples, written, sample_rate)
    container.mux(video.encode(None))
    container.mux(audio.encode(None))


def _write_audio(
    container: OutputContainer, stream: av.AudioStream, samples: np.ndarray, start: int, sample_rate: int
) -> int:
    """Encodes one AAC frame and returns the sample at which the next one starts."""
    piece = np.ascontiguousarray(samples[:, start : start + _AAC_FRAME])
    frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
    container.mux(stream.encode(frame))
    return start + piece.shape[1]
