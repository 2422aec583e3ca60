"""The Acappella layout on disk: frames in `<root>/jpgs/<split>/*/*/*/N.jpg`, audio in another tree.

The n-th frame folder of a split belongs to the n-th of `<root>/splits_16k/<split>/audio/*/*/*.wav`, both in
natural order (2 before 10). Only the order pairs them, so there must be equally many.
"""

import concurrent.futures
import os
import re
from pathlib import Path

import numpy as np
from absl import logging

from mtd_jax.data.clip import Clip, report_unusable
from mtd_jax.data.folder import FrameFolder, WaveformFile, index_files
from mtd_jax.errors import UserError

_INDEX_THREADS = 16  # the index waits for the disk, not for the processor


class AcappellaSource:
    """Clips of one split: `len(source)`, `source[i] -> Clip`, named by their frame folder within the split.

    Args:
      root: folder that holds `jpgs` and `splits_16k`.
      split: a folder of both.
      min_frames: clips with fewer frames that have audio are skipped.

    Attributes:
      list_path: the folder of the split's frames.
      skipped: names of the skipped clips, by reason.

    Raises:
      UserError: a folder is missing, frame folders and audio files are not equally many, or no clip is usable.
    """

    encoding = ""

    def __init__(self, root: str | os.PathLike, split: str, *, min_frames: int):
        frames, audio = Path(root, "jpgs", split), Path(root, "splits_16k", split, "audio")
        for folder in (frames, audio):
            if not folder.is_dir():
                raise UserError(
                    f"{folder}: no such folder; expected the split {split!r} of a data set in Acappella's layout"
                )
        self.list_path = str(frames)
        pairs = _pairs(frames, audio)
        self.skipped: dict[str, list[str]] = {}
        self._clips: list[tuple[str, Path, Path]] = []
        counts = []
        with concurrent.futures.ThreadPoolExecutor(_INDEX_THREADS) as pool:
            results = pool.map(lambda pair: _index_clip(pair[0], pair[1], min_frames), pairs)
            for (folder, file), result in zip(pairs, results, strict=True):
                name = folder.relative_to(frames).as_posix()
                if isinstance(result, str):
                    self.skipped.setdefault(result, []).append(name)
                else:
                    self._clips.append((name, folder, file))
                    counts.append(result)
        self._counts = np.array(counts, np.int64)
        report_unusable(self.list_path, len(self), len(pairs), self.skipped)

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Clip:
        name, folder, file = self._clips[index]
        first, images, samples = (int(count) for count in self._counts[index])
        return Clip(
            name=name,
            frames=FrameFolder(name, str(folder), images, first),
            waveform=WaveformFile(name, str(file), samples),
            faces=FrameFolder(name, str(folder), images, first, whole=True),
        )


def splits(root: str | os.PathLike) -> list[str]:
    """Names of the splits. Raises `UserError` if there is none."""
    folder = Path(root, "jpgs")
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not found:
        raise UserError(f"{folder}: expected a folder per split")
    return found


def natural_key(text: str) -> list:
    """Sorts runs of digits by their value: 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _pairs(frames: Path, audio: Path) -> list[tuple[Path, Path]]:
    """(frame folder, audio file) of every clip."""
    folders = sorted((p for p in frames.glob("*/*/*") if p.is_dir()), key=lambda p: natural_key(p.as_posix()))
    # Without ".wav", so that equal names pair whatever else begins like them.
    files = sorted(audio.glob("*/*/*.wav"), key=lambda p: natural_key(p.with_suffix("").as_posix()))
    names = [folder.relative_to(frames).as_posix() for folder in folders]
    heard = [file.relative_to(audio).with_suffix("").as_posix() for file in files]
    if len(names) != len(heard):
        odd = [f"no audio named {n}" for n in names if n not in set(heard)]
        odd += [f"no frames named {n}" for n in heard if n not in set(names)]
        problem = f"{len(names)} frame folders, but {len(heard)} audio files in {audio}"
        raise UserError(f"{frames}: {problem}; they pair in order and must be equally many ({'; '.join(odd[:3])})")
    differ = [pair for pair in zip(names, heard, strict=True) if pair[0] != pair[1]]
    if differ:
        first = f"{differ[0][0]} with {differ[0][1]}.wav"
        logging.warning(
            "%s: %d clips are paired with audio of other names (first: %s)", frames, len(differ), first
        )
    return list(zip(folders, files, strict=True))


def _index_clip(folder: Path, audio: Path, min_frames: int) -> tuple[int, int, int] | str:
    """(number of the first image, images, samples), or the reason why the clip is skipped."""
    try:
        files = os.listdir(folder)
    except OSError:
        return "without a readable folder"
    return index_files(files, audio, min_frames)
