"""`--fix`: a copy of a video with its audio moved, written by FFmpeg's own command.

One command does the work: it copies every packet and adds the delay to the time stamps of the audio packets.
Where the output's container refuses a stream or silently garbles it, short excerpts show which streams must be
re-encoded or dropped, and the command runs again with that plan.
"""

import os
import shutil
import subprocess
from errno import EACCES, EDQUOT, EFBIG, EIO, ENOSPC, EROFS
from pathlib import Path

import av
import imageio_ffmpeg
from av.format import ContainerFormat, Flags

from mtd_jax.errors import UserError
from mtd_jax.storage import atomic, check_writable
from mtd_jax.sync.compare import Contents, lost_in_copy, read_contents

_EXCERPT = 3.0  # seconds, beside the delay, that are written to try a plan and read back to check it
_DISK_ERRORS = {ENOSPC, EDQUOT, EFBIG, EIO, EROFS, EACCES}
_COPIED = ("video", "audio", "subtitle", "attachment", "cover")
_COPY = {"c": "copy"}
_CUT = r",noise=drop=lt(pts\,0)"  # a packet filter: drops what is due before the start

Plan = dict[int, dict[str, str]]  # stream index in the source → FFmpeg's options for it; the others are dropped


class _Refused(Exception):
    """The container does not hold these streams, or not as they should be."""


def shift_audio(source: str | os.PathLike, output: str | os.PathLike, delay_seconds: float) -> list[str]:
    """Writes a copy of a video with all its audio `delay_seconds` later (earlier if negative).

    Video, audio, subtitles, covers, attachments, chapters and tags are copied. Audio that would come before the
    start is skipped by players (MP4, MOV: an edit list) or cut. The file appears whole or not at all.

    Args:
      source: of any format FFmpeg reads.
      output: its suffix chooses the container; may exist, but must not be the source.

    Returns:
      What is not as in the source, a line each; empty for a pure copy.

    Raises:
      UserError: the source is unusable, or the output cannot be written.
    """
    source, output = Path(source), Path(output)
    muxer = check_output(source, output)
    with atomic(output) as scratch:
        copy = _Copy(source, Path(scratch), muxer, delay_seconds)
        try:
            try:
                copy.write()
            except _Refused:
                copy.negotiate()
                copy.write()
        except _Refused as error:
            raise UserError(f"cannot write {output}: {error}; another suffix may do, such as .mkv") from error
    return copy.notes()


def check_output(source: str | os.PathLike, output: str | os.PathLike) -> ContainerFormat:
    """Returns the container format that the output's suffix chooses.

    Raises:
      UserError: `shift_audio` could not write there.
    """
    source, output = Path(source), Path(output)
    if output.exists() and source.exists() and os.path.samefile(source, output):
        raise UserError(f"{output}: is the video itself; name a new file")
    expected = "expected a suffix such as .mp4, .mov or .mkv, which chooses the container"
    try:
        with av.open(f"file:{output}", "w") as writer:  # touches no file before the first packet
            muxer, codecs = writer.format, (writer.default_video_codec, writer.default_audio_codec)
    except ValueError as error:
        raise UserError(f"{output}: {expected}") from error
    if "none" in codecs or codecs[0] == "png" or muxer.flags & Flags.no_file.value:  # PNG: covers of audio files
        raise UserError(f"{output}: a {muxer.name} file does not hold a video with audio; {expected}")
    check_writable(output)
    return muxer


def _ffmpeg() -> str:
    """FFmpeg's command: the system's if it has the packet filters (5.0 or newer), else imageio-ffmpeg's."""
    system = shutil.which("ffmpeg")
    trial = ["-v", "quiet", "-f", "lavfi", "-i", "anullsrc", "-t", "0.1", "-bsf:a", f"setts=ts=TS{_CUT}"]
    if system and not subprocess.run([system, *trial, "-f", "null", "-"], stdin=subprocess.DEVNULL).returncode:
        return system
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError("no FFmpeg command was found: install ffmpeg 5.0 or newer") from error


class _Copy:
    """A copy in the making."""

    def __init__(self, source: Path, scratch: Path, muxer: ContainerFormat, delay: float):
        self._ffmpeg, self._source, self._scratch = _ffmpeg(), source, scratch
        self._muxer, self._delay, self._span = muxer, delay, _EXCERPT + abs(delay)
        self._held = read_contents(source, self._span)
        if self._held.audio is None:
            raise UserError(f"{source}: has no audio stream to move")
        # AVI, ASF and MPEG count frames: they garble the times of modern codecs, and start with the first frame.
        self._counts_frames = not muxer.flags & Flags.variable_fps.value
        self._origin = min(self._held.times[self._held.video]) if self._counts_frames else self._held.start
        self._plan: Plan = {i: self._ways(kind)[0] for i, kind in self._held.kinds.items() if kind in _COPIED}
        self._reasons: dict[int, str] = {}  # why a stream is not copied
        self._copy: Contents | None = None
        self._reports: list[str] = []

    def write(self, excerpt: bool = False) -> None:
        """Runs FFmpeg and reads the start of its file back.

        Raises:
          OSError: the disk failed.
          _Refused: the container does not take the streams as planned, or does not keep them so.
        """
        # A child that ignores SIGXFSZ, as Python does, reports a limit on file sizes instead of dying of it.
        done = subprocess.run(self._command(excerpt), capture_output=True, restore_signals=False)
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        if 256 - done.returncode in _DISK_ERRORS:  # FFmpeg exits with the error number
            raise OSError(256 - done.returncode, os.strerror(256 - done.returncode))
        if done.returncode:
            told = [
                line for line in lines if line.startswith((f"[{self._muxer.name} @", "[out#", "[graph"))
            ] or lines
            raise _Refused(
                told[0].rpartition("] ")[2].rstrip(".") if told else f"FFmpeg exited with {done.returncode}"
            )
        name, streams = f"{self._muxer.name} files", (list(self._plan), self._encoded())
        try:
            self._copy = read_contents(self._scratch, self._span)
        except UserError as error:
            raise _Refused(f"{name} cannot hold it") from error
        if lost := lost_in_copy(self._held, self._copy, *streams, self._delay, self._span):
            raise _Refused(f"{name} do not keep {lost}")
        self._reports = [line.rpartition("] ")[2] for line in lines[:1]]

    def negotiate(self) -> None:
        """Finds, stream by stream, the best way that works with those before it."""
        held, self._plan = self._held, {}
        for index in dict.fromkeys([held.video, held.audio, *(i for kind in _COPIED for i in held.of_kind(kind))]):
            for way in self._ways(held.kinds[index]):
                before = self._plan
                self._plan = before | {index: way}
                try:
                    self.write(excerpt=True)
                    break
                except _Refused as error:
                    self._reasons.setdefault(index, str(error))
                    self._plan, last = before, error
            if index not in self._plan and index in (held.video, held.audio):
                raise last

    def notes(self) -> list[str]:
        """What is not as in the source."""
        held, copy, encoded, lines = self._held, self._copy, self._encoded(), []
        for index, kind in held.kinds.items():
            if index not in self._plan and not (kind in ("timecode", "chapters") and copy.of_kind(kind)):
                lines.append(f"{held.words(index)} was dropped: {self._reasons.get(index, 'it is not copied')}")
            elif index in encoded:
                twin = copy.of_kind(kind)[held.of_kind(kind, self._plan).index(index)]
                lines.append(f"{held.words(index)} was re-encoded ({copy.labels[twin]}): {self._reasons[index]}")
        if copy.chapters < held.chapters:
            lines.append(f"{held.chapters - copy.chapters} of {held.chapters} chapters were dropped")
        return lines + [f"FFmpeg reports: {line}" for line in self._reports]

    def _ways(self, kind: str) -> list[dict[str, str]]:
        """FFmpeg's options for a stream of this kind, the best first."""
        if kind == "video":
            size = f"{self._held.width // 2 * 2}:{self._held.height // 2 * 2}"
            fit = f"scale=iw*sar:ih,scale={size}:force_original_aspect_ratio=decrease,pad={size}:-1:-1,setsar=1"
            # Each encoder takes the options that it knows; without a time base, times are rounded to frames.
            encode = {"filter": fit, "fps_mode": "vfr", "crf": "16", "b": "0", "q": "2", "deadline": "realtime"}
            exact = encode | {"cpu-used": "5", "enc_time_base": "1/90000"}
            return [_COPY, encode] if self._counts_frames else [_COPY, exact | {"c": "libx264"}, exact]
        if kind == "audio":
            cut = "" if self._muxer.flags & Flags.ts_negative.value else _CUT
            copy = _COPY | {"bsf": f"setts=ts=TS+round({self._delay:.6f}/TB){cut}"}
            fill = f"asetpts=PTS+{self._delay:.6f}/TB,atrim=start=0,aresample=async=1:min_hard_comp=0.01"
            if self._muxer.name == "avi":  # all starts at 0: no late audio, nor room for an encoder's priming
                return [copy, {"c": "pcm_s16le", "filter": f"{fill}:first_pts=0"}]
            encode = {"filter": fill}
            return [copy, *([] if self._counts_frames else [encode | {"c": "aac"}]), encode, encode | {"ac": "2"}]
        return [_COPY, {}] if kind == "subtitle" else [_COPY]

    def _command(self, excerpt: bool) -> list[str]:
        command = [self._ffmpeg, "-nostdin", "-y", "-v", "error", "-fflags", "+genpts"]
        if excerpt:
            command += ["-t", f"{self._span}"]
        if (
            self._muxer.name == "avi"
        ):  # a filter that starts again, at another sample rate, would fill from 0 again
            command += ["-reinit_filter:a", "0"]
        command += ["-itsoffset", f"{self._held.start - self._origin:.6f}", "-i", f"file:{self._source}"]
        for number, (index, options) in enumerate(sorted(self._plan.items())):
            command += ["-map", f"0:{index}"]
            for name, value in options.items():
                command += [f"-{name}:{number}", value]
        return [*command, f"file:{self._scratch}"]

    def _encoded(self) -> dict[int, float]:
        """When each re-encoded stream starts, by the source's clock."""
        held, starts = self._held, {}
        for index in (i for i, options in self._plan.items() if "copy" not in options.values()):
            late = held.kinds[index] == "audio" and self._muxer.name != "avi" and len(held.times[index])
            starts[index] = max(self._origin, min(held.times[index]) + self._delay if late else self._origin)
        return starts
