"""Any videos to training clips in the LRS2 layout: in parallel, resumable, with an account of what was lost."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from mtd_jax.errors import UserError
from mtd_jax.media.faces import search_on_one_thread
from mtd_jax.media.find import FindSettings, face_source
from mtd_jax.media.lrs2_writer import STATE, Job, Outcome, OutputError, write_clips
from mtd_jax.media.sources import list_videos
from mtd_jax.parallel import Crashed, run_jobs

_source = functools.cache(face_source)  # one detector per process


@dataclasses.dataclass(frozen=True)
class Summary:
    """What came of the videos, by their names.

    Attributes:
      clips: names of the clips, in the order of the list file.
      was_there: videos that an earlier run had done.
      dropped: video → what was left out of it and why, also when other parts of it were kept.
      failed: video → why it cannot be used at all.
      videos: how many there were.
    """

    clips: list[str]
    was_there: list[str]
    dropped: dict[str, list[str]]
    failed: dict[str, str]
    videos: int

    def lines(self) -> list[str]:
        """In words: a headline, then one line per loss."""
        head = f"{len(self.clips)} clips of {self.videos} videos"
        if self.was_there:
            head += f" ({len(self.was_there)} videos were done before)"
        losses = [f"{name}: {line}" for name, lines in self.dropped.items() for line in lines]
        return [head, *losses, *(f"{name}: failed: {error}" for name, error in self.failed.items())]


def preprocess(videos: str | os.PathLike, output: str | os.PathLike, *, faces: str = "mtcnn",
               all_faces: bool = False, list_name: str = "train", find: FindSettings | None = None,
               workers: int | None = None, progress: bool = True) -> Summary:  # fmt: skip
    """Writes `<output>/<speaker>/<clip>/{0.jpg, …, audio.wav}` and `<output>/<list_name>.txt`.

    A video gives one clip per face track: named like the video if it is the only one, else `…_track1`, `…_track2`.
    An interrupted run goes on where it stopped; changed settings or videos are done anew; videos that fail are
    passed over, and tried again by the next run.

    Args:
      videos: a folder, or a list file, see `list_videos`.
      output: a new or empty folder, or one this function has written to before.
      faces: "mtcnn", the path of an .onnx detector, or "whole" for videos that are cropped to the face already.
      all_faces: also keep faces beside a larger one. They are mostly listeners, whose lips don't fit the sound.
      list_name: of the list file, which names the clips of these videos alone; "train", "val", "test", …
      find: how videos are searched; the same defaults as for inference.
      workers: processes; None = one per CPU core.
      progress: show a progress bar on stderr.

    Returns:
      The summary, which is also in `<output>/<list_name>_summary.txt`.

    Raises:
      UserError: no videos, an output folder that holds something else or cannot be written, no such detector, or
        no video that gives a clip.
    """
    if workers is not None and workers < 1:
        raise UserError(f"expected workers ≥ 1, got {workers}")
    if faces.lower().endswith(".json"):
        raise UserError(f'{faces}: boxes belong to one video; expected "mtcnn", "whole" or an .onnx file')
    output = Path(os.path.abspath(output))
    jobs = [
        Job(name, path, output, faces, all_faces, find or FindSettings())
        for name, path in list_videos(videos).items()
    ]
    _source(faces)  # a missing detector shows before any work
    try:
        if output.exists() and not (output / STATE).is_dir() and any(output.iterdir()):
            raise UserError(f"{output} holds something else already: choose a new folder")
        (output / STATE).mkdir(parents=True, exist_ok=True)
        outcomes = dict(_run(jobs, workers, progress))
        names = [job.name for job in jobs]
        summary = Summary(
            clips=[clip for name in names for clip in outcomes[name].clips],
            was_there=[name for name in names if outcomes[name].was_there],
            dropped={name: outcomes[name].dropped for name in names if outcomes[name].dropped},
            failed={name: outcomes[name].error for name in names if outcomes[name].error},
            videos=len(jobs),
        )
        _write_lines(output / f"{list_name}.txt", summary.clips)
        _write_lines(output / f"{list_name}_summary.txt", summary.lines())
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error}") from error
    if not summary.clips:
        raise UserError(f"none of the {len(jobs)} videos gave a clip: {'; '.join(summary.lines()[1:4])}")
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
    except Exception as error:  # one odd video of thousands doesn't end the run, but is reported and tried again
        return Outcome([], [], " ".join(f"unexpected {type(error).__name__}: {error}".split()))


def _write_lines(path: Path, lines: list[str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(f"{line}\n" for line in lines))
    partial.replace(path)
