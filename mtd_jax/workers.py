"""Work beside the main thread: jobs in processes, with a progress bar, and items that a thread prepares ahead."""

import collections
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
Item = TypeVar("Item")


def usable_cores() -> int:
    """CPU cores that this process may use; where the system does not say, all cores of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Makes a worker exit when its parent process ends for whatever reason; a pool's worker would wait forever.

    Raises:
      RuntimeError: this process is not a worker.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("end_with_parent was called outside a worker process")

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """Yields the items of an iterator, which are never None; a thread prepares the next `count` meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1, "ahead") as thread:
        waiting = collections.deque(thread.submit(next, items, None) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, items, None))
            yield item


class Crashed(Exception):
    """The process of a job died, for example out of memory or of a library's segmentation fault."""


def run_jobs(
    do: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int | None,
    what: str,
    progress: bool,
    start_worker: Callable[[], None] | None = None,
) -> Iterator[tuple[Job, Result | Crashed]]:
    """Yields (job, its result) as jobs complete.

    A job that kills its process yields `Crashed`; the other jobs run in new processes. An exception raised by `do`
    ends the run.

    Args:
      do: the work; must be picklable, as must its arguments and results.
      jobs: in the order in which to start them.
      workers: number of processes; None = `usable_cores`; 1 = run in this process, unprotected against crashes.
      what: label of the progress bar.
      progress: whether to show the bar, on stderr.
      start_worker: called once in each new process.
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
            # Jobs start in order, so the crashed one is among the first ones left. Each of those now runs alone,
            # so that only the culprit crashes.
            for number in list(waiting)[:workers]:
                done = dict(_run_until_crash(do, {number: waiting[number]}, 1, start_worker))
                yield waiting.pop(number), done.get(number, Crashed())
                advance()


def _run_until_crash(
    do: Callable[[Job], Result], jobs: dict[int, Job], workers: int, start_worker: Callable[[], None] | None
) -> Iterator[tuple[int, Result]]:
    """Yields (number, result) of each finished job; a crash ends it without an error."""
    # Spawned, not forked: the parent may run JAX's threads, and a fork would copy their locks but not the threads.
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


def _begin(start_worker: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    end_with_parent()
    if start_worker is not None:
        start_worker()


@contextlib.contextmanager
def _bar(what: str, total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """Shows a progress bar and yields the function that advances it by one job."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), disable=not shown) as bar:
        row = bar.add_task(what, total=total)
        yield lambda: bar.advance(row)
