"""The Acappella layout on disk: pictures in `<root>/jpgs/<split>/*/*/*/N.jpg`, sound in another tree.

The sound of the n-th folder of pictures of a split is the n-th of `<root>/splits_16k/<split>/audio/*/*/*.wav`,
both in natural order (2 before 10). Nothing but the order says which belong together, so both must be as many.
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
    """Clips of one split: `len(source)`, `source[i] -> Clip`, named by their folder of pictures within the split.

    Args:
      root: folder that holds `jpgs` and `splits_16k`.
      split: a folder of both.
      min_frames: clips with fewer frames that have both picture and sound are left out.

    Attributes:
      list_path: the folder of the split's pictures.
      skipped: names of the clips left out, by reason.

    Raises:
      UserError: a folder is missing, pictures and sounds are not as many, or no clip is usable.
    """

    encoding = ""

    def __init__(self, root: str | os.PathLike, split: str, *, min_frames: int):
        pictures, sounds = Path(root, "jpgs", split), Path(root, "splits_16k", split, "audio")
        for folder in (pictures, sounds):
            if not folder.is_dir():
                raise UserError(
                    f"{folder}: no such folder; expected the split {split!r} of a data set in Acappella's layout"
                )
        self.list_path = str(pictures)
        pairs = _pairs(pictures, sounds)
        self.skipped: dict[str, list[str]] = {}
        self._clips: list[tuple[str, Path, Path]] = []
        counts = []
        with concurrent.futures.ThreadPoolExecutor(_INDEX_THREADS) as pool:
            results = pool.map(lambda pair: _index_clip(pair[0], pair[1], min_frames), pairs)
            for (folder, sound), result in zip(pairs, results, strict=True):
                name = folder.relative_to(pictures).as_posix()
                if isinstance(result, str):
                    self.skipped.setdefault(result, []).append(name)
                else:
                    self._clips.append((name, folder, sound))
                    counts.append(result)
        self._counts = np.array(counts, np.int64)
        report_unusable(self.list_path, len(self), len(pairs), self.skipped)

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Clip:
        name, folder, sound = self._clips[index]
        first, images, samples = (int(count) for count in self._counts[index])
        return Clip(
            name=name,
            frames=FrameFolder(name, str(folder), images, first),
            waveform=WaveformFile(name, str(sound), samples),
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


def _pairs(pictures: Path, sounds: Path) -> list[tuple[Path, Path]]:
    """(folder of pictures, sound) of every clip."""
    folders = sorted((p for p in pictures.glob("*/*/*") if p.is_dir()), key=lambda p: natural_key(p.as_posix()))
    # Without ".wav", so that equal names pair whatever else begins like them.
    files = sorted(sounds.glob("*/*/*.wav"), key=lambda p: natural_key(p.with_suffix("").as_posix()))
    names = [folder.relative_to(pictures).as_posix() for folder in folders]
    heard = [file.relative_to(sounds).with_suffix("").as_posix() for file in files]
    if len(names) != len(heard):
        odd = [f"no sound named {n}" for n in names if n not in set(heard)]
        odd += [f"no pictures named {n}" for n in heard if n not in set(names)]
        problem = f"{len(names)} folders of pictures, but {len(heard)} sounds in {sounds}"
        raise UserError(f"{pictures}: {problem}; they pair in order and must be as many ({'; '.join(odd[:3])})")
    differ = [pair for pair in zip(names, heard, strict=True) if pair[0] != pair[1]]
    if differ:
        first = f"{differ[0][0]} with {differ[0][1]}.wav"
        logging.warning(
            "%s: %d clips are paired with sounds of other names (first: %s)", pictures, len(differ), first
        )
    return list(zip(folders, files, strict=True))


def _index_clip(folder: Path, sound: Path, min_frames: int) -> tuple[int, int, int] | str:
    """(number of the first image, images, samples), or the reason why the clip is skipped."""
    try:
        files = os.listdir(folder)
    except OSError:
        return "without a readable folder"
    return index_files(files, sound, min_frames)
