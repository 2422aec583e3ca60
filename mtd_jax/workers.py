"""Jobs in worker processes, with a progress bar, and past a job that takes its worker down with it."""

import concurrent.futures.process
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import rich.console
import rich.progress

Job = TypeVar("Job")
Result = TypeVar("Result")


def usable_cores() -> int:
    """CPU cores that this process may use; all of the machine's where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """In a worker: it ends with the process that started it, however that ends. A pool's would wait for ever."""

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Crashed(Exception):
    """A job whose process died: out of memory, or a fault in a library."""


def run_jobs(
    do: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int | None,
    what: str,
    progress: bool,
    start_worker: Callable[[], None] | None = None,
) -> Iterator[tuple[Job, Result | Crashed]]:
    """Yields (job, its result) in the order in which jobs get done.

    A job that kills its process costs itself only: it gives `Crashed`, the others are done in new processes. What
    `do` raises otherwise ends the run.

    Args:
      do: a function that can be pickled, and so can its arguments and results.
      jobs: in the order to be started.
      workers: processes; None = `usable_cores`; 1 = this process, which a crash then takes down.
      what: is being done, beside the progress bar.
      progress: whether to draw one on stderr.
      start_worker: is called in each new process.
    """
    workers = min(workers or usable_cores(), len(jobs))
    with _bar(what, len(jobs), progress) as advance:
        if workers <= 1:
            for job in jobs:
                yield job, do(job)
                advance()
            return
        waiting = dict(enumerate(jobs))
        while waiting:
            for number, result in _run_until_crash(do, waiting, workers, start_worker):
                yield waiting.pop(number), result
                advance()
            # Jobs start in order, so the one that crashed is among the first; each gets a process of its own.
            for number in list(waiting)[:workers]:
                done = dict(_run_until_crash(do, {number: waiting[number]}, 1, start_worker))
                yield waiting.pop(number), done.get(number, Crashed())
                advance()


def _run_until_crash(do, jobs: dict, workers: int, start_worker) -> Iterator[tuple[int, Result]]:
    # Not forked: the parent may hold JAX's threads, which a fork would break.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (start_worker,)) as pool:
        futures = {pool.submit(do, job): number for number, job in jobs.items()}
        try:
            for future in concurrent.futures.as_completed(futures):
                try:
                    result = future.result()
                except concurrent.futures.process.BrokenProcessPool:
                    continue
                yield futures[future], result
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _begin(start_worker) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once, without a traceback of its own
    end_with_parent()
    if start_worker is not None:
        start_worker()


@contextlib.contextmanager
def _bar(what: str, total: int, shown: bool):
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), disable=not shown) as bar:
        row = bar.add_task(what, total=total)
        yield lambda: bar.advance(row)
