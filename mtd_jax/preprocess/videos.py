"""Which videos to preprocess, and what their clips are called."""

import os
import re
from pathlib import Path, PurePosixPath

from mtd_jax.data.list_file import read_list
from mtd_jax.errors import UserError

SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)


def videos_in(folder: str | os.PathLike) -> list[Path]:
    """All video files below a folder, by suffix, sorted.

    Pipes and links to nowhere are among them, so that they get reported. A link to a folder elsewhere is followed.

    Raises:
      UserError: none, or a folder that cannot be read.
    """

    def fail(error: OSError):
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error

    root = os.path.realpath(folder)
    seen, found = set(), []
    for here, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(here)
        inside = os.path.commonpath([root, real]) == root
        if real in seen or (inside and os.path.islink(here) and here != os.fspath(folder)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        # Hidden files and folders hold no videos: macOS leaves one, ._x.mp4, beside each x.mp4 on foreign disks.
        shown = [name for name in files if not name.startswith(".")]
        found += [Path(here, name) for name in shown if Path(name).suffix.lower() in SUFFIXES]
    if not found:
        raise UserError(f"{folder}: no video files in this folder; expected {', '.join(sorted(SUFFIXES))}")
    return sorted(found)


def list_videos(videos: str | os.PathLike) -> list[tuple[str, Path]]:
    """The videos to preprocess, in order: (name, file). No two have the same name.

    Args:
      videos: a folder, searched for video files in all its folders; or a text file with a video per line, relative
        to the list's own folder. `.mp4` may be omitted, and words after such a name are ignored, so LRS2's own
        list files work.

    Returns:
      Names are the paths below the folder (of the list), without suffix and with _ for white space:
      `speaker/clip` for speaker/clip.mp4. A video directly in it, or elsewhere, is called
      `<its folder>/<its name>`. No folder in a name ends in .t1, .t2, … as clips do (`clip_name`), so no clip is
      stored inside another.

    Raises:
      UserError: nothing there, a listed file is missing, or two videos would have the same name.
    """
    videos = Path(videos)
    if videos.is_dir():
        root = videos.resolve()
        paths = videos_in(root)
    elif videos.is_file():
        root = videos.resolve().parent
        paths = _read_list(videos, root)
    else:
        raise UserError(f"{videos}: no such file; expected a folder of videos, or a list of them")
    named: dict[str, Path] = {}
    for path in paths:
        name = _name(path, root)
        if named.setdefault(name, path) != path:
            raise UserError(
                f"{named[name]} and {path} would give clips of one name ({name}): rename one of the two"
            )
    return list(named.items())


def clip_name(video: str, track: int) -> str:
    """Name of the clip of a video's face track, counted from 1. No two (video, track) have the same."""
    return f"{video}.t{track}"


def video_of(clip: str) -> str:
    """Name of the video that a clip is of."""
    return re.sub(r"\.t\d+$", "", clip)


def _read_list(path: Path, root: Path) -> list[Path]:
    found = []
    for number, line in read_list(path, expected="a folder of videos, or a text file that lists them"):
        candidates = [root / line.strip(), root / f"{line.split()[0]}.mp4"]
        existing = [candidate for candidate in candidates if os.path.lexists(candidate) and not candidate.is_dir()]
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
    # Lone surrogates stand for bytes that are no UTF-8; a list file could not hold them.
    name = re.sub(r"[\s\ud800-\udfff]", "_", str(PurePosixPath(inside.with_suffix(""))))
    return re.sub(r"\.(t\d+)(?=/)", r"_\1", name)
