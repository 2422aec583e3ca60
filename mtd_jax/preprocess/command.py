"""Any videos to training clips in the LRS2 layout: in parallel and resumable; reports every loss."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from mtd_jax.errors import UserError
from mtd_jax.faces.detect import search_on_one_thread
from mtd_jax.faces.search import FindSettings, face_source
from mtd_jax.preprocess.manifest import (
    STATE,
    SUMMARY,
    check_list_name,
    read_lines,
    shared_with,
    update_list,
    write_lines,
)
from mtd_jax.preprocess.videos import list_videos
from mtd_jax.preprocess.writer import Job, Outcome, OutputError, write_clips
from mtd_jax.workers import Crashed, run_jobs

_source = functools.cache(face_source)  # one detector per process


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome of a run, by names of videos.

    Attributes:
      clips: names of the clips of these videos.
      was_there: videos that an earlier run finished.
      dropped: video → the parts of it that give no clip, and why.
      failed: video → why it cannot be used.
      videos: their number.
      notes: on the list file.
    """

    clips: list[str]
    was_there: list[str]
    dropped: dict[str, list[str]]
    failed: dict[str, str]
    videos: int
    notes: list[str]

    def lines(self) -> list[str]:
        """A headline, then one line per loss."""
        head = f"{len(self.clips)} clips of {self.videos} videos"
        if self.was_there:
            head += f" ({len(self.was_there)} videos were done before)"
        losses = [f"{name}: {line}" for name, lines in self.dropped.items() for line in lines]
        failures = [f"{name}: failed: {error.removeprefix(f'{name}: ')}" for name, error in self.failed.items()]
        return [_printable(line) for line in (head, *self.notes, *losses, *failures)]


def preprocess(videos: str | os.PathLike, output: str | os.PathLike, *, faces: str = "mtcnn",
               all_faces: bool = False, list_name: str = "train", find: FindSettings | None = None,
               workers: int | None = None, progress: bool = True) -> Summary:  # fmt: skip
    """Writes `<output>/<speaker>/<clip>/{0.jpg, …, audio.wav}` and `<output>/<list_name>.txt`.

    A video gives one clip per face track, named `<video>.t1`, `<video>.t2`, … An interrupted run resumes where it
    stopped. Videos are processed again if they or the settings changed, or if they failed before. A video whose
    clips would overwrite those of another video fails.

    Several runs may share a folder: with other list names for validation and test clips, or with the same one,
    which then gains the clips of the new videos. (Delete a list to start it again.)

    Args:
      videos: a folder, or a list file, see `list_videos`.
      output: a new or empty folder, or one this function has written to before.
      faces: "mtcnn", or "whole" for videos that are cropped to the face already.
      all_faces: also keep faces next to a larger one: mostly listeners, whose lips do not fit the audio.
      list_name: of the list file, without .txt: "train", "val", "test", "pretrain", …
      find: how videos are searched; the same defaults as for inference.
      workers: processes; None = one per CPU core.
      progress: show a progress bar on stderr.

    Returns:
      The summary of this run, which is also in `<output>/<list_name>_summary.txt`.

    Raises:
      UserError: no videos, two videos of one name, an output folder that contains something else or cannot
        be written, no such detector, or no video that gives a clip.
    """
    if workers is not None and workers < 1:
        raise UserError(f"expected workers ≥ 1, got {workers}")
    if faces.lower().endswith(".json"):
        raise UserError(f'{faces}: boxes belong to one video; expected "mtcnn" or "whole"')
    check_list_name(list_name)
    output = Path(os.path.abspath(output))
    named = list_videos(videos)
    _source(faces)  # fail early if the detector is missing
    try:
        if output.exists() and not (output / STATE).is_dir() and any(output.iterdir()):
            raise UserError(f"{output} contains something else: choose a new folder")
        (output / STATE).mkdir(parents=True, exist_ok=True)
        list_file = output / f"{list_name}.txt"
        read_lines(list_file)  # if a file of that name is no text, fail before any work
        jobs = [Job(name, path, output, faces, all_faces, find or FindSettings()) for name, path in named]
        done = dict(_run(jobs, workers, progress))
        with contextlib.suppress(OSError):  # another run may be using it
            (output / STATE / "partial").rmdir()
        outcomes = {name: done[name] for name, _ in named}  # in their order
        clips = [clip for outcome in outcomes.values() for clip in outcome.clips]
        # Where an earlier run used a name for another video, its lines stay.
        ours = [name for name, outcome in outcomes.items() if not outcome.name_is_taken]
        others = update_list(list_file, ours, clips)
        notes = [f"{list_file.name} also has {others} clips of other videos, from earlier runs"] if others else []
        notes += shared_with(list_file, set(clips))
        summary = Summary(
            clips=clips,
            was_there=[name for name, outcome in outcomes.items() if outcome.was_there],
            dropped={name: outcome.dropped for name, outcome in outcomes.items() if outcome.dropped},
            failed={name: outcome.error for name, outcome in outcomes.items() if outcome.error},
            videos=len(named),
            notes=notes,
        )
        write_lines(output / f"{list_name}{SUMMARY}", summary.lines())
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    if not summary.clips:
        raise UserError(f"none of the {len(named)} videos gave a clip: {'; '.join(summary.lines()[1:4])}")
    return summary


def _run(jobs: list[Job], workers: int | None, progress: bool) -> Iterator[tuple[str, Outcome]]:
    """Yields (name, outcome) as videos get done, in this process or in several."""
    options = {"workers": workers, "what": "preprocessing videos", "progress": progress}
    for job, outcome in run_jobs(_do, jobs, start_worker=search_on_one_thread, **options):
        if isinstance(outcome, Crashed):
            outcome = Outcome([], [], "its process died: out of memory, or a video that crashes the decoder")
        yield job.name, outcome


def _do(job: Job) -> Outcome:
    try:
        return write_clips(job, _source(job.faces))
    except OutputError:
        raise
    except Exception as error:  # one odd video of thousands must not end the run: it is reported and retried
        return Outcome([], [], " ".join(f"unexpected {type(error).__name__}: {error}".split()))


def _printable(text: str) -> str:
    """On one line, and without bytes of file names that are no UTF-8."""
    return " ".join(text.encode("utf-8", "replace").decode().split())
