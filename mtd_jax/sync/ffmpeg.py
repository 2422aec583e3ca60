"""FFmpeg's own command: which one is used, and what its failures mean."""

import os
import shutil
import subprocess
from errno import EACCES, EDQUOT, EFBIG, EIO, ENOSPC, EROFS

import imageio_ffmpeg

from mtd_jax.errors import UserError

CUT = r"noise=drop=lt(pts\,0)"  # a packet filter: drops what is due before the start
_DISK_ERRORS = {ENOSPC, EDQUOT, EFBIG, EIO, EROFS, EACCES}


class Refused(Exception):
    """The container does not hold these streams, or not as they should be."""


def find_ffmpeg() -> str:
    """The system's command if it has the packet filters (5.0 or newer), else the one of imageio-ffmpeg.

    Raises:
      UserError: there is neither.
    """
    system = shutil.which("ffmpeg")
    trial = ["-v", "quiet", "-f", "lavfi", "-i", "anullsrc", "-t", "0.1", "-bsf:a", f"setts=ts=TS,{CUT}"]
    if system and not subprocess.run([system, *trial, "-f", "null", "-"], stdin=subprocess.DEVNULL).returncode:
        return system
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError("no FFmpeg command was found: install ffmpeg 5.0 or newer") from error


def run(command: list[str], muxer: str) -> list[str]:
    """Runs a command that writes one file; returns what it reported, a line each.

    Raises:
      OSError: the disk failed.
      Refused: anything else failed, with FFmpeg's line about the output.
    """
    # A child that ignores SIGXFSZ, as Python does, reports a limit on file sizes instead of dying of it.
    done = subprocess.run(command, capture_output=True, restore_signals=False)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    number = 256 - done.returncode  # FFmpeg exits with the negative error number
    if number in _DISK_ERRORS:
        raise OSError(number, os.strerror(number))
    about_output = [line for line in lines if line.startswith((f"[{muxer} @", "[out#", "[graph"))]
    lines = [line.rpartition("] ")[2].rstrip(".") for line in about_output or lines]
    if done.returncode:
        raise Refused(lines[0] if lines else f"FFmpeg exited with {done.returncode}")
    return lines
