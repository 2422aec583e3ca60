"""Which videos to preprocess, and what their clips are called."""

import os
import re
from pathlib import Path, PurePosixPath

from mtd_jax.errors import UserError

SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)


def list_videos(videos: str | os.PathLike) -> dict[str, Path]:
    """Clip name → video file, in order.

    Args:
      videos: a folder, searched for video files in all its folders; or a text file with a video per line, relative
        to the list's own folder. `.mp4` may be left out there, and words after the name are ignored then, so the
        list files of LRS2 serve as they are.

    Returns:
      Names are the paths below the folder (of the list), without suffix and with _ for white space:
      `speaker/clip` for speaker/clip.mp4. A video that lies in it directly, or elsewhere, is called
      `<its folder>/<its name>`.

    Raises:
      UserError: nothing there, a listed file is missing, or two videos of the same name.
    """
    videos = Path(videos)
    if videos.is_dir():
        root = videos.resolve()
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not paths:
            raise UserError(f"{videos}: no video files in this folder; expected {', '.join(sorted(SUFFIXES))}")
    elif videos.is_file():
        root = videos.resolve().parent
        paths = _read_list(videos, root)
    else:
        raise UserError(f"{videos}: no such file; expected a folder of videos, or a list of them")
    named: dict[str, Path] = {}
    for path in paths:
        name = _name(path, root)
        if name in named and named[name] != path:
            raise UserError(f"{named[name]} and {path} would give clips of the same name, {name}: rename one")
        named[name] = path
    return named


def _read_list(path: Path, root: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a folder of videos, or a text file that lists them") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        candidates = [root / line.strip(), root / f"{line.split()[0]}.mp4"]
        existing = [candidate for candidate in candidates if candidate.is_file()]
        if not existing:
            raise UserError(f"{path}, line {number}: no such video: {candidates[0]}")
        found.append(Path(os.path.abspath(existing[0])))
    if not found:
        raise UserError(f"{path}: the list is empty")
    return found


def _name(path: Path, root: Path) -> str:
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    if len(inside.parts) == 1:
        inside = Path(path.parent.name or "videos", path.name)
    return re.sub(r"\s", "_", str(PurePosixPath(inside.with_suffix(""))))
