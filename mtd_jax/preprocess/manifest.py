"""What runs of the preprocessing have done: a record per video, `<output>/.preprocess/videos/<name>.json`.

A record is written when all clips of its video are there, so a run that finds it can leave the video alone.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from mtd_jax.data.list_file import read_list
from mtd_jax.errors import UserError
from mtd_jax.preprocess.videos import video_of
from mtd_jax.storage import write_text

STATE = ".preprocess"


@dataclasses.dataclass(frozen=True)
class Record:
    """One finished video.

    Attributes:
      name: of the video, see `videos.list_videos`.
      video: its path.
      size, mtime_ns: of the file when it was processed.
      settings: with which it was done.
      clips: names of its clips, folders below the output.
      dropped: parts of the video without a clip and why, one line each.
    """

    name: str
    video: str
    size: int
    mtime_ns: int
    settings: dict
    clips: list[str]
    dropped: list[str]

    def is_unchanged(self, stat: os.stat_result) -> bool:
        """Whether the file still has this size and time."""
        return (self.size, self.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def read_record(output: Path, name: str) -> Record | None:
    """The record of a video; None if it isn't finished."""
    try:
        return Record(**json.loads(_file(output, name).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_record(output: Path, record: Record) -> None:
    """Writes a record, whole or not at all."""
    path = _file(output, record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(dataclasses.asdict(record)))


def _file(output: Path, name: str) -> Path:
    return output / STATE / "videos" / f"{name}.json"


# List files of a data set: a clip's name first on each line. Several runs may add to one.

SUMMARY = "_summary.txt"


def check_list_name(name: str) -> None:
    """Raises `UserError` for what cannot be the name of a list file."""
    if not re.fullmatch(r"[\w-]+", name) or f"{name}.txt".endswith(SUMMARY):
        raise UserError(f"--list_name: expected a plain name such as train, val, test or pretrain, got {name!r}")


def update_list(path: Path, videos: Collection[str], clips: Sequence[str]) -> int:
    """Makes a list file name exactly `clips` of these videos, and leaves the lines of other videos alone.

    Lines keep their places, so that the same run again leaves the file as it is.

    Args:
      path: of the list; a new one is started if it isn't there.
      videos: names of this run's videos.
      clips: names of their clips.

    Returns:
      How many lines belong to other videos.
    """
    new, others, old = dict.fromkeys(clips), 0, []
    for line in read_lines(path):
        clip = line.split()[0]
        if clip in new or video_of(clip) not in videos:
            old.append(line)
            others += clip not in new
            new.pop(clip, None)
    write_lines(path, [*old, *new])
    return others


def shared_with(path: Path, clips: Collection[str]) -> list[str]:
    """Which other lists of the folder name some of the clips as well, in words."""
    notes = []
    for other in sorted(path.parent.glob("*.txt")):
        if other == path or other.name.endswith(SUMMARY) or not other.is_file():
            continue
        with contextlib.suppress(UserError):  # some other text
            if shared := [clip for line in read_lines(other) if (clip := line.split()[0]) in clips]:
                notes.append(f"{len(shared)} of the clips are on {other.name} too (first: {shared[0]})")
    return notes


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes a text file, whole or not at all."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not blank; none if there is no file. Raises `UserError` if it is no text."""
    return [line for _, line in read_list(path)] if path.exists() else []
