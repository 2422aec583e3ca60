"""`--mode=infer`: verdicts on one video or a folder: on the terminal, as JSON, as HTML, as a fixed copy."""

import contextlib
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import rich.console
import rich.progress
import rich.table
from rich.markup import escape

from mtd_jax.data.clip import FPS
from mtd_jax.errors import UserError, one_line
from mtd_jax.faces.search import face_source
from mtd_jax.models import load_model, shown
from mtd_jax.preprocess.videos import videos_in
from mtd_jax.scoring import Scorer
from mtd_jax.storage import check_writable
from mtd_jax.sync.detect import MAX_FACES, Progress, check_max_shift, detect_offset
from mtd_jax.sync.fix import check_output, move_audio
from mtd_jax.sync.repair import repair_audio
from mtd_jax.sync.verdict import GUESS, STANDARDS, Result, one_line_json, two_digits
from mtd_jax.video.container import read_head

_LISTED = 6  # faces, in the text
_TABLE = {True: "within", False: "outside", None: "?"}
_MEETS = {True: "within", False: "outside", None: "cannot tell whether it is within"}


def measure(
    checkpoint,
    video,
    *,
    faces: str = "mtcnn",
    max_shift: int = 15,
    as_json: bool = False,
    report: str | None = None,
    fix: str | None = None,
    fix_tracks: str = "all",
    filter_max_offset: int | None = None,
    thorough: bool = False,
    max_faces: int = MAX_FACES,
    audio_track: str | None = None,
    audio: str | None = None,
    standard: str | None = None,
    force: bool = False,
) -> int:
    """Runs the command; stdout gets results only, progress and tables of folders go to stderr.

    Args:
      checkpoint: see `load_model`; None: the included model.
      video: a file, or a folder that is searched for videos in all its folders.
      faces, max_shift, thorough, max_faces, audio_track, audio: see `detect_offset`.
      as_json: a JSON object per file instead of text.
      report: HTML page to write; for one video only.
      fix: copy to write with its audio moved; of a folder, the folder for copies of the videos that need it.
      fix_tracks: move "all" audio streams, or only the "measured" one.
      filter_max_offset: print the files whose offset is no larger, certain and constant, instead of verdicts.
      standard: "atsc", "ebu" or "itu": say whether the offset is within what it tolerates.
      force: write `fix` even if the offset is a guess.

    Returns:
      The exit code: 1 if any file of a folder failed, or could not be copied.

    Raises:
      UserError: the one video failed, or the arguments don't fit.
    """
    video = Path(video)
    if filter_max_offset is not None and filter_max_offset < 0:
        raise UserError(f"--filter_max_offset: expected frames ≥ 0, got {filter_max_offset}")
    check_max_shift(max_shift)
    if standard is not None and standard not in STANDARDS:
        raise UserError(f"--standard: expected {', '.join(STANDARDS)}, got {standard}")
    if fix is not None and not str(fix):
        raise UserError("--fix: expected a file to write, or a folder, got nothing")
    if (force or fix_tracks != "all") and not fix:
        raise UserError("--force and --fix_tracks belong to --fix")
    if audio and audio_track:
        raise UserError("--audio and --audio_track exclude each other: name the audio that counts")
    if fix and report and Path(fix) == Path(report):
        raise UserError(f"--fix and --report name the same file, {fix}")
    if fix and audio:
        raise UserError("--fix moves the video's own audio: omit --audio")
    if video.is_dir() and audio:
        raise UserError(f"{video} is a folder: --audio belongs to one video")
    if video.is_dir() and report:
        raise UserError(f"{video} is a folder: --report takes one video")
    if fix_tracks not in ("all", "measured"):
        raise UserError(f"--fix_tracks: expected all or measured, got {fix_tracks}")
    if not video.is_dir():
        read_head(video)
    if fix:
        (_check_folder if video.is_dir() else check_output)(video, Path(fix))
    if report:
        check_writable(report)
    paths = videos_in(video) if video.is_dir() else []
    scorer = Scorer(load_model(checkpoint))
    source = face_source(faces)

    def find(path, progress: Progress | None = None, track: str | None = audio_track) -> Result:
        found = detect_offset(
            scorer,
            path,
            faces=source,
            max_shift=max_shift,
            thorough=thorough,
            max_faces=max_faces,
            audio_track=track,
            audio=audio,
            progress=progress,
        )
        return dataclasses.replace(found, model=shown(checkpoint))

    if video.is_dir():
        fixed = None if fix is None else functools.partial(_fix_in, video, Path(fix), find, force, fix_tracks)
        return _folder(video, paths, find, as_json, filter_max_offset, standard, fixed)
    with progress_bar() as bar:
        result = find(video, progress=bar)
    _print(result, as_json, filter_max_offset, standard)
    if report:
        from mtd_jax.sync.report import write_report

        write_report(report, result)
    if fix:
        print(write_fixed(result, Path(fix), find, force, fix_tracks), file=sys.stderr)
    return 0


def text(result: Result, standard: str | None = None) -> str:
    """The verdict for people: a headline, what it rests on, a line per face if they are few, the warnings."""
    lines = [f"{result.video}: {result.summary}", f"  {result.basis}"]
    if standard:
        lines.append(f"  {_MEETS[result.meets(standard)]} {STANDARDS[standard]}")
    if 1 < len(result.tracks) <= _LISTED:
        for number, track in enumerate(result.tracks):
            role = ", the speaker" if number == result.speaker else ""
            lines.append(
                f"  face {number}{role}, {track.start_seconds:.1f}–{track.end_seconds:.1f} s: offset "
                f"{track.offset_frames:+d} frames, confidence {two_digits(track.confidence)}"
            )
    elif len(result.tracks) > _LISTED:
        lines.append(f"  {len(result.tracks)} stretches with a face; --json lists them")
    return "\n".join([*lines, *(f"  note: {line}" for line in result.warnings)])


def _in_short(result: Result) -> str:
    """The verdict in a few words, for a table."""
    if result.verdict != "unknown" or result.confidence >= GUESS:
        return result.summary
    why = f": {re.split(r' [(]|[:;,]', result.warnings[-1])[0]}" if result.warnings else ""
    return f"cannot tell{why}"


def keeps(result: Result, max_offset: int) -> bool:
    """Whether a training set should keep this video: the offset is small, certain and constant."""
    return result.verdict in ("in_sync", "out_of_sync") and abs(result.offset_frames) <= max_offset


def _folder(
    folder: Path,
    paths: list[Path],
    find: Callable[..., Result],
    as_json: bool,
    filter_max_offset: int | None,
    standard: str | None,
    fix: Callable[[Result], str] | None,
) -> int:
    """Goes through all files, past bad ones."""
    table = rich.table.Table(rich.table.Column("file", overflow="fold", ratio=2))
    table.add_column("verdict", ratio=3)
    for name in ("offset", "sure", "faces"):
        table.add_column(name, no_wrap=True)
    if standard:
        table.add_column(STANDARDS[standard].name)
    if fix:
        table.add_column("copy", ratio=3)
    failed = unfixed = 0
    with progress_bar() as bar:
        for number, path in enumerate(paths):
            shown, copied = str(path.relative_to(folder)), ""
            bar.stage(path.name, len(paths), number)
            try:
                result = find(path)
            except Exception as error:  # one odd file of thousands doesn't end the run
                why = why_failed(error)
                failed += 1
                if as_json:
                    print(one_line_json({"video": str(path), "error": why}), flush=True)
                table.add_row(*map(escape, (shown, f"failed: {why.removeprefix(f'{path}: ')}")))
                continue
            row = [f"{result.offset_frames:+d}", two_digits(result.confidence), str(len(result.tracks))]
            row += [_TABLE[result.meets(standard)]] if standard else []
            if fix:
                try:
                    copied = fix(result)
                except (UserError, OSError) as error:
                    unfixed += 1
                    copied = f"failed: {one_line(error)}"
                row.append(copied)
            _print(result, as_json, filter_max_offset, quiet=True, more={"copy": copied} if fix else {})
            table.add_row(*map(escape, (shown, _in_short(result), *row)))
    console = rich.console.Console(stderr=as_json or filter_max_offset is not None)
    console.print(table)
    copies = f"; copies that failed: {unfixed}" if unfixed else ""
    console.print(f"measured {len(paths) - failed} of {len(paths)}, {failed} failed{copies}")
    return 1 if failed or unfixed else 0


def why_failed(error: Exception) -> str:
    """On one line, why one file of several could not be measured."""
    known = isinstance(error, UserError)
    return " ".join((str(error) if known else f"unexpected {type(error).__name__}: {error}").split())


def _print(
    result: Result,
    as_json: bool,
    filter_max_offset: int | None,
    standard: str | None = None,
    quiet: bool = False,
    more: dict[str, str] | None = None,
) -> None:
    if as_json:
        keep = {} if filter_max_offset is None else {"keep": keeps(result, filter_max_offset)}
        print(one_line_json(result.to_dict() | keep | (more or {})), flush=True)
    elif filter_max_offset is not None:
        if keeps(result, filter_max_offset):
            print(result.video.replace("\n", "\\n"), flush=True)  # a line per file, whatever its name
    elif not quiet:
        print(text(result, standard))


def write_fixed(
    result: Result, output: Path, find: Callable[..., Result], force: bool = False, fix_tracks: str = "all"
) -> str:
    """Writes the copy and measures it; returns what was done. Refuses to write a guess, unless it is forced."""
    if not force and result.verdict == "unknown":
        raise UserError(
            f"{output} was not written: the offset is a guess, see the notes; --force writes it all the same"
        )
    if result.course.is_constant:
        only = result.audio_track if fix_tracks == "measured" else None
        delay, note = result.offset_seconds, f"audio moved by {1000 * result.offset_seconds:+.0f} ms"
        if result.verdict == "in_sync" and abs(delay) <= (result.offset_error_seconds or 0):
            delay, note = 0.0, "audio left where it is: the offset is within the error of the measurement"
        copied, moved = move_audio(result.video, output, delay, result.audio_track, only)
        notes = [note, *copied]
        if result.is_cut_short:
            notes.append("what follows the jump of the clock was moved by as much, unmeasured")
        after = find(output, track=str(moved))
    else:
        notes = repair_audio(result.video, output, result.course, result.offset_frames / FPS, result.audio_track)
        after = find(output, track=None)  # of its audio only the repaired track is left
    if after.verdict == "out_of_sync":
        raise UserError(f"{output} was written, but is not in sync ({'; '.join(notes)}): {after.summary}")
    return f"{output}: {'; '.join([*notes, f'measured again: {after.summary}'])}"


def _check_folder(videos: Path, copies: Path) -> None:
    """Raises `UserError` if copies of these videos cannot be written there."""
    if copies.resolve().is_relative_to(videos.resolve()):
        raise UserError(f"--fix: {copies} is within {videos}: name a folder outside of it")
    there = next(folder for folder in (copies, *copies.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"--fix: {there} is a file; expected a folder, as --video is one")
    check_writable(there / "copy")


def _fix_in(
    videos: Path, copies: Path, find: Callable[..., Result], force: bool, fix_tracks: str, result: Result
) -> str:
    """Writes the copy of one of several videos, if it needs one; returns what was done, for a table."""
    if result.verdict == "in_sync":
        return "not needed"
    if result.verdict == "unknown" and not force:
        return "not written: a guess"
    output = copies / Path(result.video).relative_to(videos)
    output.parent.mkdir(parents=True, exist_ok=True)
    check_output(result.video, output)
    return write_fixed(result, output, find, force, fix_tracks).removeprefix(f"{output}: ")


class _Bar:
    """A `Progress` that shows the current stage as one bar."""

    def __init__(self, display: rich.progress.Progress):
        self._display = display
        self._row = display.add_task("", total=None)

    def stage(self, name: str, total: float | None, done: float = 0) -> None:
        self._display.update(self._row, description=name, total=total, completed=done)

    def update(self, done: float) -> None:
        self._display.update(self._row, completed=done)


@contextlib.contextmanager
def progress_bar() -> Iterator[_Bar]:
    """A progress bar on stderr, hidden if that is not a terminal."""
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    hidden = not console.is_terminal
    with rich.progress.Progress(*columns, console=console, transient=True, disable=hidden) as display:
        yield _Bar(display)
