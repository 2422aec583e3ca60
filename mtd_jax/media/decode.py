"""Any video file to pictures at 25 per second and sound at 16 kHz, on one clock. The only reader of video.

The clock is the container's: a picture and a sample belong together when their time stamps say so, whatever the
frame rate and wherever the streams start. Grid frame 0 is the first picture; grid frame k is k/25 s later, and
sample 640·k sounds at that moment. So a video stream that starts 200 ms after the audio loses the first 200 ms
of sound, and the offset between the two is measured, not lost; a late audio stream starts with silence.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

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

Progress = Callable[[float, float | None], None]  # seconds decoded, seconds in all if known


@dataclasses.dataclass
class VideoFile:
    """A video file that has both picture and sound; every pass reads the file anew.

    Attributes:
      path: of the file.
      height, width: of the pictures in pixels, after rotation.
      start_seconds: when grid frame 0 is shown, counted from the start of the earlier stream as players do.
      duration_seconds: what the container declares, from its start; None if it doesn't say.
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
        """Faults of the file met so far, one line each."""
        return [line for lines in self._faults.values() for line in lines]

    def frames(self, progress: Progress | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (k, uint8 (height, width, 3) RGB) for k = 0, 1, …: the picture of time k/25 s.

        It is the picture nearest in time, but never one that is 20 ms or more ahead. Where a picture serves
        twice the same array comes again, so don't write into it.
        """
        for k, picture in self._grid(progress):
            try:
                pixels = picture.rgb(self.height, self.width)
            except (av.FFmpegError, ValueError) as error:
                raise UserError(f"{self.path}: its pictures cannot be converted to RGB ({error})") from error
            yield k, pixels

    def count_frames(self, progress: Progress | None = None) -> int:
        """How many frames `frames` yields; decodes the video, but spares the conversion to RGB."""
        return sum(1 for _ in self._grid(progress))

    def waveform(self) -> np.ndarray:
        """int16 (samples,), 16 kHz mono from grid frame 0 to the end of the sound."""
        faults = Faults("sound")
        samples = decode_sound(self.path, self._origin, faults)
        self._faults["sound"] = faults.warnings()
        return samples

    def _grid(self, progress: Progress | None) -> Iterator[tuple[int, Picture]]:
        faults, picture = Faults("picture"), None
        with open_container(self.path) as container:
            shown = pictures(container, video_stream(container, self.path), faults)
            for k, picture in on_grid(shown, self._origin, faults):
                if progress is not None and k % FPS == 0:
                    progress(k / FPS, self.duration_seconds)
                yield k, picture
        if picture is not None and self.duration_seconds is not None:
            end = self.start_seconds + float(picture.end - self._origin)
            if end < 0.95 * self.duration_seconds - 1:
                faults.messages.append(f"picture: ends at {end:.1f} s of {self.duration_seconds:.1f} s")
        self._faults["picture"] = faults.warnings()


def open_video(path: str | os.PathLike) -> VideoFile:
    """Opens any container and codec that FFmpeg reads.

    Raises:
      UserError: the file is missing, empty, no video, cut off beyond use, or lacks picture or sound.
    """
    path = Path(path)
    with open_container(path) as container:
        video, audio = video_stream(container, path), audio_stream(container, path)
        audio_start = seconds(audio.start_time, audio.time_base)
        _, duration = declared_times(container)
        notes = stream_notes(container, video, audio)
        first = next(pictures(container, video, Faults("picture")), None)
    if first is None:
        raise UserError(f"{path}: no picture could be decoded from its video stream")
    height, width = first.rgb().shape[:2]
    start = first.time if audio_start is None else min(first.time, audio_start)
    return VideoFile(path, height, width, float(first.time - start), duration, first.time, {"streams": notes})


def read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a short clip whole.

    Returns:
      frames uint8 (n, height, width, 3) RGB at 25 per second, and waveform int16 (at most 640·n,) at 16 kHz.

    Raises:
      UserError: as `open_video`.
    """
    video = open_video(path)
    frames = np.stack([picture for _, picture in video.frames()])
    return frames, video.waveform()[: len(frames) * SAMPLES_PER_FRAME]
