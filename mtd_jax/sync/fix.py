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

_EXCERPT = 5.0  # seconds, beside the delay, that are written to try a plan and read back to check it
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
            of_muxer = [line for line in lines if line.startswith((f"[{self._muxer.name} @", "[out#"))]
            raise _Refused(
                (of_muxer or lines or [f"FFmpeg ended with {done.returncode}"])[0].rpartition("] ")[2].rstrip(".")
            )
        try:
            self._copy = read_contents(self._scratch, self._span)
        except UserError as error:
            raise _Refused(f"{self._muxer.name} files cannot hold them") from error
        if lost := lost_in_copy(self._held, self._copy, self._encoded(), self._delay, self._span):
            raise _Refused(f"{self._muxer.name} files do not keep {lost}")
        self._reports = lines[:1]

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
                    self._plan = before
            if index not in self._plan and index in (held.video, held.audio):
                raise _Refused(self._reasons[index])

    def notes(self) -> list[str]:
        """What is not as in the source."""
        held, copy, encoded, lines = self._held, self._copy, self._encoded(), []
        for index, kind in held.kinds.items():
            if index not in encoded and not (kind in ("timecode", "chapters") and copy.of_kind(kind)):
                lines.append(f"{held.words(index)} was dropped: {self._reasons.get(index, 'it is not copied')}")
            elif encoded.get(index):
                twin = copy.of_kind(kind)[held.of_kind(kind, self._plan).index(index)]
                lines.append(f"{held.words(index)} was re-encoded ({copy.labels[twin]}): {self._reasons[index]}")
        if copy.chapters < held.chapters:
            lines.append(f"{held.chapters - copy.chapters} of {held.chapters} chapters were dropped")
        return lines + [f"FFmpeg reports: {line}" for line in self._reports]

    def _ways(self, kind: str) -> list[dict[str, str]]:
        """FFmpeg's options for a stream of this kind, the best first."""
        flags = self._muxer.flags
        own_codecs = not flags & Flags.variable_fps.value  # AVI, ASF and MPEG garble the times of modern ones
        if kind == "video":
            square = "crop=trunc(iw/2)*2:trunc(ih/2)*2,scale=trunc(iw*sar/2)*2:ih,setsar=1"
            quality = {
                "crf": "16",
                "b": "0",
                "q": "2",
                "deadline": "realtime",
                "cpu-used": "5",
            }  # each encoder takes its own
            encode = quality | {"filter": square, "fps_mode": "vfr"}
            return [_COPY, *([] if own_codecs else [encode | {"c": "libx264"}]), encode]
        if kind == "audio":
            cut = "" if flags & Flags.ts_negative.value else _CUT
            copy = _COPY | {"bsf": f"setts=ts=TS+round({self._delay:.6f}/TB){cut}"}
            encode = {"filter": f"asetpts=PTS+{self._delay:.6f}/TB,aresample=async=1:first_pts=0"}  # fills holes
            if self._muxer.name == "avi":  # has no place for what lossy encoders put before the first sample
                return [copy, encode | {"c": "pcm_s16le"}]
            return [copy, *([] if own_codecs else [encode | {"c": "aac"}]), encode, encode | {"ac": "2"}]
        return [_COPY, {}] if kind == "subtitle" else [_COPY]

    def _command(self, excerpt: bool) -> list[str]:
        limit = ["-t", f"{self._span}"] if excerpt else []
        command = [self._ffmpeg, "-nostdin", "-y", "-v", "error", "-fflags", "+genpts", *limit]
        command += ["-i", f"file:{self._source}"]
        for number, (index, options) in enumerate(sorted(self._plan.items())):
            command += ["-map", f"0:{index}"]
            for name, value in options.items():
                command += [f"-{name}:{number}", value]
        return [*command, f"file:{self._scratch}"]

    def _encoded(self) -> dict[int, bool]:
        return {index: "copy" not in options.values() for index, options in self._plan.items()}
