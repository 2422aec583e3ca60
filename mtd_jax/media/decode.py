"""The only reader of video: any file to frames at 25 fps and audio at 16 kHz, on one clock.

The clock is the container's: its time stamps decide which frame and which sample belong together, whatever the
frame rate and wherever the streams start. Grid frame 0 is the first video frame, grid frame k is shown k/25 s
later, and sample 640·k is heard at that moment. If the video starts 200 ms after the audio, the first 200 ms of
audio are dropped; if the audio starts late, it is padded with silence. Either way the offset between them is
preserved.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.error import FFmpegError

from mtd_jax.data.clip import FPS, SAMPLES_PER_FRAME
from mtd_jax.errors import UserError
from mtd_jax.media.container import (
    Faults,
    audio_stream,
    declared_times,
    open_container,
    seconds,
    stream_notes,
    video_stream,
)
from mtd_jax.media.pictures import Picture, on_grid, pictures
from mtd_jax.media.sound import decode_sound

Progress = Callable[[float, float | None], None]  # seconds decoded, seconds in total if known


@dataclasses.dataclass
class VideoFile:
    """A file with both video and audio. Every pass reads it again from the start.

    Attributes:
      path: the file.
      height, width: frame size in pixels, after rotation.
      start_seconds: when grid frame 0 is shown, counted from the start of the earlier stream, as players do.
      duration_seconds: the duration that the container declares; None if it does not declare one.
    """

    path: Path
    height: int
    width: int
    start_seconds: float
    duration_seconds: float | None
    _origin: Fraction
    _faults: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """Faults of the file found so far, one line each."""
        return [line for lines in self._faults.values() for line in lines]

    def frames(self, progress: Progress | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (k, uint8 (height, width, 3) RGB) for k = 0, 1, …: the frame shown at k/25 s.

        That is the frame nearest in time, but never one 20 ms or more ahead. A frame that fills several grid
        positions is yielded as the same read-only array each time.

        Raises:
          UserError: the pixel format cannot be converted to RGB.
        """
        for k, frame in self._grid(progress):
            try:
                pixels = frame.rgb(self.height, self.width)
            except (FFmpegError, ValueError) as error:
                raise UserError(f"{self.path}: its frames cannot be converted to RGB ({error})") from error
            yield k, pixels

    def count_frames(self, progress: Progress | None = None) -> int:
        """How many frames `frames` yields. Decodes the video, but skips the conversion to RGB."""
        return sum(1 for _ in self._grid(progress))

    def waveform(self) -> np.ndarray:
        """int16 (samples,), 16 kHz mono, from grid frame 0 to the end of the audio.

        Raises:
          UserError: as `decode_sound`.
        """
        faults = Faults("audio")
        samples = decode_sound(self.path, self._origin, faults)
        self._faults["audio"] = faults.warnings()
        return samples

    def _grid(self, progress: Progress | None) -> Iterator[tuple[int, Picture]]:
        faults, frame = Faults("video"), None
        with open_container(self.path) as container:
            source = pictures(container, video_stream(container, self.path), faults)
            for k, frame in on_grid(source, self._origin, faults):
                if progress is not None and k % FPS == 0:
                    progress(k / FPS, self.duration_seconds)
                yield k, frame
        if frame is not None and self.duration_seconds is not None:
            end = self.start_seconds + float(frame.end - self._origin)
            if end < 0.95 * self.duration_seconds - 1:
                faults.messages.append(f"video: ends at {end:.1f} s of {self.duration_seconds:.1f} s")
        self._faults["video"] = faults.warnings()


def open_video(path: str | os.PathLike) -> VideoFile:
    """Opens any container and codec that FFmpeg reads.

    Raises:
      UserError: the file is missing, empty, not a video, truncated beyond use, or lacks video or audio.
    """
    path = Path(path)
    with open_container(path) as container:
        video, audio = video_stream(container, path), audio_stream(container, path)
        audio_start = seconds(audio.start_time, audio.time_base)
        _, duration = declared_times(container)
        notes = stream_notes(container, video, audio)
        first = next(pictures(container, video, Faults("video")), None)
    if first is None:
        raise UserError(f"{path}: no frame could be decoded from its video stream")
    height, width = first.rgb().shape[:2]
    start = first.time if audio_start is None else min(first.time, audio_start)
    return VideoFile(path, height, width, float(first.time - start), duration, first.time, {"streams": notes})


def read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a whole short clip into memory.

    Returns:
      frames uint8 (n, height, width, 3) RGB at 25 fps, and waveform int16 (at most 640·n,) at 16 kHz.

    Raises:
      UserError: as `open_video`, `VideoFile.frames` and `VideoFile.waveform`.
    """
    video = open_video(path)
    frames = np.stack([pixels for _, pixels in video.frames()])
    return frames, video.waveform()[: len(frames) * SAMPLES_PER_FRAME]
