"""`--fix`: a copy of a video with its audio moved, written by FFmpeg's own command.

One command does the work: it copies every packet and adds the delay to the time stamps of the audio packets.
Where the output's container refuses a stream or silently garbles it, short excerpts show which streams must be
re-encoded or dropped, and the command runs again with that plan.
"""

import os
from pathlib import Path

import av
import numpy as np
from av.format import ContainerFormat, Flags

from mtd_jax.errors import UserError
from mtd_jax.storage import atomic, check_writable
from mtd_jax.sync.compare import Contents, lost_in_copy, read_contents
from mtd_jax.sync.ffmpeg import CUT, Refused, find_ffmpeg, run

_EXCERPT = 3.0  # seconds, beside the delay, that are written to try a plan and read back to check it
_UNEVEN = 0.005  # seconds by which steps between frames differ
_COPIED = ("video", "audio", "subtitle", "attachment", "cover")
_COPY = {"c": "copy"}

Plan = dict[int, dict[str, str]]  # stream index in the source → FFmpeg's options for it; the others are dropped


def move_audio(
    source: str | os.PathLike,
    output: str | os.PathLike,
    delay_seconds: float,
    measured_track: int | None = None,
    only_track: int | None = None,
) -> tuple[list[str], int]:
    """Writes a copy of a video with its audio `delay_seconds` later (earlier if negative).

    Video, audio, subtitles, covers, attachments, chapters and tags are copied. Audio that would come before the
    start is skipped by players (MP4, MOV: an edit list) or cut. The file appears whole or not at all.

    Args:
      source: of any format FFmpeg reads.
      output: its suffix chooses the container; may exist, but must not be the source.
      measured_track: number of the audio stream, from 1, that must not be dropped; None = the main one.
      only_track: number of the only one to move; None = all.

    Returns:
      What is not as in the source, a line each, empty for a pure copy; and the number of the measured audio stream
      in the copy.

    Raises:
      UserError: the source is unusable, or the output cannot be written.
    """
    source, output = Path(source), Path(output)
    muxer = check_output(source, output)
    with atomic(output) as scratch:
        copy = _Copy(source, Path(scratch), muxer, delay_seconds, measured_track, only_track)
        try:
            try:
                copy.write()
            except Refused:
                copy.negotiate()
                copy.write()
        except Refused as error:
            raise UserError(f"cannot write {output}: {error}; another suffix may do, such as .mkv") from error
    return copy.notes(), copy.measured_track()


def shift_audio(
    source: str | os.PathLike, output: str | os.PathLike, delay_seconds: float, only_track: int | None = None
) -> list[str]:
    """As `move_audio`; returns what is not as in the source, a line each."""
    return move_audio(source, output, delay_seconds, only_track, only_track)[0]


def check_output(source: str | os.PathLike, output: str | os.PathLike) -> ContainerFormat:
    """Returns the container format that the output's suffix chooses.

    Raises:
      UserError: `shift_audio` could not write there.
    """
    source, output = Path(source), Path(output)
    if output.exists() and source.exists() and os.path.samefile(source, output):
        raise UserError(f"{output}: is the video itself; name a new file")
    expected = "expected a suffix such as .mp4, .mov or .mkv"
    try:
        with av.open(f"file:{output}", "w") as writer:  # touches no file before the first packet
            muxer, codecs = writer.format, (writer.default_video_codec, writer.default_audio_codec)
    except ValueError as error:
        raise UserError(f"{output}: {expected}") from error
    if "none" in codecs or codecs[0] == "png" or muxer.flags & Flags.no_file.value:  # PNG: covers of audio files
        raise UserError(f"{output}: a {muxer.name} file does not hold a video with audio; {expected}")
    check_writable(output)
    return muxer


class _Copy:
    """A copy in the making."""

    def __init__(
        self,
        source: Path,
        scratch: Path,
        muxer: ContainerFormat,
        delay: float,
        measured_track: int | None,
        only_track: int | None,
    ):
        self._ffmpeg, self._source, self._scratch = find_ffmpeg(), source, scratch
        self._muxer, self._span = muxer, _EXCERPT + abs(delay)
        self._held = read_contents(source, self._span)
        if self._held.audio is None:
            raise UserError(f"{source}: has no audio stream")
        tracks = self._held.of_kind("audio")
        moved = tracks if only_track is None else [tracks[only_track - 1]]
        self._delays = {index: delay if index in moved else 0.0 for index in tracks}
        measured = self._held.audio if measured_track is None else tracks[measured_track - 1]
        self._measured = self._held.video, measured
        # AVI, ASF and MPEG count frames: they garble the times of modern codecs, and start with the first frame.
        self._counts_frames = not muxer.flags & Flags.variable_fps.value
        self._zero_start = muxer.name == "avi"  # of all audio
        starts = [self._held.start, *self._held.times[self._held.video]]
        self._origin = min(starts[1:] or starts) if self._counts_frames else starts[0]
        self._plan: Plan = {i: self._ways(i)[0] for i, kind in self._held.kinds.items() if kind in _COPIED}
        self._reasons: dict[int, str] = {}  # why a stream is not copied
        self._copy: Contents  # of the file that was written last
        self._reports: list[str] = []

    def write(self, excerpt: bool = False) -> None:
        """Runs FFmpeg and reads the start of its file back.

        Raises:
          OSError: the disk failed.
          Refused: the container does not take the streams as planned, or does not keep them so.
        """
        name = self._muxer.name
        self._reports = run(self._command(excerpt), name)[:1]
        try:
            self._copy = read_contents(self._scratch, self._span)
        except UserError as error:
            raise Refused(f"{name} files cannot hold it") from error
        kept = list(self._plan)
        if lost := lost_in_copy(self._held, self._copy, kept, self._starts(), self._delays, self._span):
            raise Refused(f"{name} files do not keep {lost}")

    def negotiate(self) -> None:
        """Finds, stream by stream, the best way that works with those before it."""
        held, self._plan = self._held, {}
        for index in dict.fromkeys([*self._measured, *(i for kind in _COPIED for i in held.of_kind(kind))]):
            ways = self._ways(index)
            for way in ways:
                before = self._plan
                self._plan = before | {index: way}
                try:
                    self.write(excerpt=True)
                    break
                except Refused as error:
                    self._reasons.setdefault(index, str(error))
                    self._plan = before
                    if way is ways[-1] and index in self._measured:
                        raise

    def notes(self) -> list[str]:
        """What is not as in the source."""
        held, copy, encoded, lines = self._held, self._copy, self._starts(), []
        for index, kind in held.kinds.items():
            rewritten = kind == "chapters" or (kind == "timecode" and copy.of_kind(kind))
            if index not in self._plan and not rewritten:
                lines.append(f"{held.words(index)} was dropped: {self._reasons.get(index, 'it is not copied')}")
            elif index in encoded:
                verb = "converted" if kind == "subtitle" else "re-encoded"
                twin = copy.of_kind(kind)[held.of_kind(kind, self._plan).index(index)]
                lines.append(f"{held.words(index)} was {verb} ({copy.labels[twin]}): {self._reasons[index]}")
        if copy.chapters < held.chapters:
            lines.append(f"{held.chapters - copy.chapters} of {held.chapters} chapters were dropped")
        return lines + [f"FFmpeg reports: {line}" for line in self._reports]

    def measured_track(self) -> int:
        """Its number among the audio streams of the copy, from 1."""
        return 1 + self._held.of_kind("audio", self._plan).index(self._measured[1])

    def _ways(self, index: int) -> list[dict[str, str]]:
        """FFmpeg's options for a stream, the best first."""
        kind = self._held.kinds[index]
        if kind == "video":
            size = f"{self._held.width // 2 * 2}:{self._held.height // 2 * 2}"
            fit = f"scale=iw*sar:ih,scale={size}:force_original_aspect_ratio=decrease,pad={size}:-1:-1,setsar=1"
            # Each encoder takes the options that it knows; without a time base, times are rounded to frames.
            encode = {"filter": fit, "fps_mode": "vfr", "crf": "16", "b": "0", "q": "2", "deadline": "realtime"}
            exact = encode | {"cpu-used": "5", "enc_time_base": "1/90000"}
            if not self._counts_frames:
                return [_COPY, exact | {"c": "libx264"}, exact]
            uneven = np.ptp(np.diff(np.sort(self._held.times[self._held.video]))) > _UNEVEN
            return [_COPY, *([encode | {"enc_time_base": "1/100"}] if uneven else []), encode]
        if kind == "audio":
            cut = "" if self._muxer.flags & Flags.ts_negative.value else f",{CUT}"
            delay = self._delays[index]
            copy = _COPY | {"bsf": f"setts=ts=TS+round({delay:.6f}/TB){cut}"}
            fill = f"asetpts=PTS+{delay:.6f}/TB,atrim=start=0,aresample=async=1:min_hard_comp=0.01"
            if self._zero_start:  # silence instead of a late start, and no room for an encoder's priming
                return [copy, {"c": "pcm_s16le", "filter": f"{fill}:first_pts=0"}]
            encode = {"filter": fill}
            return [copy, *([] if self._counts_frames else [encode | {"c": "aac"}]), encode, encode | {"ac": "2"}]
        return [_COPY, {}, {"c": "mov_text"}] if kind == "subtitle" else [_COPY]

    def _command(self, excerpt: bool) -> list[str]:
        command = [self._ffmpeg, "-nostdin", "-y", "-v", "error", "-fflags", "+genpts"]
        command += ["-t", f"{self._span}"] if excerpt else []
        # A filter that starts again, where damage seems to change the sample rate, would fill from 0 again.
        command += ["-reinit_filter:a", "0"] if self._zero_start else []
        command += ["-itsoffset", f"{self._held.start - self._origin:.6f}", "-i", f"file:{self._source}"]
        for number, (index, options) in enumerate(sorted(self._plan.items())):
            command += ["-map", f"0:{index}"]
            for name, value in options.items():
                command += [f"-{name}:{number}", value]
        return [*command, f"file:{self._scratch}"]

    def _starts(self) -> dict[int, float]:
        """When each re-encoded stream starts, by the source's clock."""
        starts = {i: self._origin for i, options in self._plan.items() if "copy" not in options.values()}
        for index in () if self._zero_start else self._held.of_kind("audio", starts):
            starts[index] = max([self._origin, *self._held.times[index][:1] + self._delays[index]])
        return starts
