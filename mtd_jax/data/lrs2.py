"""The LRS2 layout on disk: `<root>/<speaker>/<clip>/{0.jpg, 1.jpg, …, audio.wav}` and list files.

Frames and audio are read only when a clip is sliced, and only the slice (`folder.py`). An index over file names
and WAV headers finds unusable clips once; they are skipped, counted and reported in a single log line.
"""

import concurrent.futures
import os
from pathlib import PurePosixPath

import numpy as np
import rich.console
import rich.progress

from mtd_jax.data.clip import Clip, report_unusable
from mtd_jax.data.folder import GAP, FrameFolder, WaveformFile, index_files
from mtd_jax.data.list_file import read_list
from mtd_jax.errors import UserError

AUDIO_FILE = "audio.wav"
_INDEX_THREADS = 16  # the index waits for the disk, not for the processor
_PROGRESS_FROM = 2_000  # clips; fewer are indexed before a bar could be read


class Lrs2Source:
    """Clips of one list file of a data set in the LRS2 layout: `len(source)`, `source[i] -> Clip`.

    Args:
      root: folder that holds the speakers' folders.
      list_file: a name such as "train" or "train.txt" for a file in `root`, or a path with a folder in it.
        The first word of each line is `speaker/clip`; other words are ignored.
      min_frames: clips with fewer frames that have audio are skipped. (The published recipe
        trains on more than 25 frames; scoring a clip needs one frame more than a window.)

    Attributes:
      skipped: names of the skipped clips, by reason.

    Raises:
      UserError: root or list file missing, a listed path that leaves the root, or no usable clip.
    """

    encoding = ""

    def __init__(self, root: str | os.PathLike, list_file: str | os.PathLike, *, min_frames: int):
        if not os.path.isdir(root):
            raise UserError(f"{root}: no such folder; expected the root of a data set in the LRS2 layout")
        self.root = os.path.realpath(root)
        self.list_path = _list_path(self.root, list_file)
        self.skipped: dict[str, list[str]] = {}
        self._names: list[str] = []
        counts: list[tuple[int, int]] = []
        listed = _read_names(self.list_path)
        seen: set[str] = set()
        for name, result in self._index(listed, min_frames):
            if name in seen:
                result = "listed before"
            seen.add(name)
            if isinstance(result, str):
                self.skipped.setdefault(result, []).append(name)
            else:
                self._names.append(name)
                counts.append(result)
        self._counts = np.array(counts, np.int64)  # compact, because the source travels to worker processes
        report_unusable(self.list_path, len(self), len(listed), self.skipped)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Clip:
        name = self._names[index]
        num_images, num_samples = (int(count) for count in self._counts[index])
        directory = os.path.join(self.root, name)
        return Clip(
            name=name,
            frames=FrameFolder(name, directory, num_images),
            waveform=WaveformFile(name, os.path.join(directory, AUDIO_FILE), num_samples),
            faces=FrameFolder(name, directory, num_images, whole=True),
        )

    def _index(self, listed: list[tuple[int, str]], min_frames: int):
        """Yields (name, (images, samples) or the reason why the clip is skipped), in the list's order."""

        def index(line_and_name: tuple[int, str]):
            line, name = line_and_name
            return name, _index_clip(self.root, name, f"{self.list_path}, line {line}", min_frames)

        with concurrent.futures.ThreadPoolExecutor(_INDEX_THREADS) as pool:
            try:
                yield from rich.progress.track(
                    pool.map(index, listed),
                    description=f"Indexing {os.path.basename(self.list_path)}",
                    total=len(listed),
                    console=rich.console.Console(stderr=True),
                    transient=True,
                    disable=len(listed) < _PROGRESS_FROM,
                )
            finally:
                pool.shutdown(cancel_futures=True)  # an error need not wait for the rest of the list


def _list_path(root: str, list_file: str | os.PathLike) -> str:
    path = os.fspath(list_file)
    if os.path.basename(path) == path:  # a bare name belongs to the data set
        path = os.path.join(root, path if path.endswith(".txt") else f"{path}.txt")
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such list file; expected lines that start with speaker/clip")
    return path


def _read_names(path: str) -> list[tuple[int, str]]:
    """Line numbers (from 1) and clip names, checked to be relative and free of `..`."""
    listed = []
    for number, line in read_list(path):
        name = PurePosixPath(line.split()[0])
        if name.is_absolute() or ".." in name.parts or "\0" in str(name):
            problem = f"{str(name)!r} leaves the data set; expected speaker/clip"
            raise UserError(f"{path}, line {number}: {problem}")
        listed.append((number, str(name)))
    return listed


def _index_clip(root: str, name: str, listed_at: str, min_frames: int) -> tuple[int, int] | str:
    """(images, samples) of one clip, or the reason why it is skipped."""
    directory = os.path.join(root, name)
    _check_inside(root, directory, listed_at)
    try:
        with os.scandir(directory) as entries:
            files = list(entries)
    except OSError:
        return "without a readable folder"
    for file in files:
        if file.is_symlink():
            _check_inside(root, file.path, listed_at)
    found = index_files([file.name for file in files], os.path.join(directory, AUDIO_FILE), min_frames)
    if isinstance(found, str):
        return found
    first, images, samples = found
    return GAP if first else (images, samples)


def _check_inside(root: str, path: str, listed_at: str) -> None:
    target = os.path.realpath(path)
    if os.path.commonpath([root, target]) != root:
        raise UserError(f"{listed_at}: {path} leads out of the data set, to {target}; move it into {root}")
