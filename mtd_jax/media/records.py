"""What runs of the preprocessing have done: a record per video, `<output>/.preprocess/videos/<name>.json`.

A record is written when all clips of its video are there, so a run that finds it can leave the video alone.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

STATE = ".preprocess"


@dataclasses.dataclass(frozen=True)
class Record:
    """One finished video.

    Attributes:
      name: what its clips are called after.
      video: its path.
      size, mtime_ns: of the file then.
      settings: with which it was done.
      clips: names of its clips, folders below the output.
      dropped: what was left out and why, a line each.
    """

    name: str
    video: str
    size: int
    mtime_ns: int
    settings: dict
    clips: list[str]
    dropped: list[str]

    def is_of(self, video: Path) -> bool:
        """Whether this file was done, under this path or, unchanged, under another."""
        if self.video == os.fspath(video):
            return True
        try:
            stat = video.stat()
        except OSError:
            return False
        return (self.size, self.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def read_record(output: Path, name: str) -> Record | None:
    """The record of a video; None if it isn't finished."""
    return _read(_file(output, name))


def read_records(output: Path) -> Iterator[Record]:
    """All records."""
    for path in sorted((output / STATE / "videos").rglob("*.json")):
        if record := _read(path):
            yield record


def write_record(output: Path, record: Record) -> None:
    """Writes a record, whole or not at all."""
    path = _file(output, record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(dataclasses.asdict(record)))
    unfinished.replace(path)


def _file(output: Path, name: str) -> Path:
    return output / STATE / "videos" / f"{name}.json"


def _read(path: Path) -> Record | None:
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
