"""How the processes of a run join, compare their settings, wait for each other, and end when one of them fails."""

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.experimental import multihost_utils

from mtd_jax.errors import Interrupted, UserError, error_line, one_line

AUTO = "auto"
HEARTBEAT_SECONDS = 20  # when one process dies, JAX ends the others after at most this long
_JOIN_SECONDS = 300
_SHUTDOWN_SECONDS = 60
_BARRIER_SECONDS = 3600  # another process may still index its clips, or compile
_LAST_WORDS_SECONDS = 2
_JOIN_ADVICE = "start all of them, with the same coordinator and number of processes, and each with its own number"
_barriers = itertools.count()


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process to the others. Call it before anything uses a device.

    From here on JAX ends this process when another one dies, and SIGTERM to any process is a preemption notice
    (see `preemption`).

    Args:
      coordinator: HOST:PORT of process 0; "auto" lets JAX detect SLURM, Open MPI or a TPU pod; None, with None for
        the others, means a single process.
      num_processes: number of processes, with HOST:PORT.
      process_id: number of this process from 0, with HOST:PORT.

    Raises:
      UserError: the flags contradict each other, JAX finds no cluster, or the processes differ in --num_processes
        or in their number of devices.
    """
    if (coordinator, num_processes, process_id) == (None, None, None):
        return
    _check_flags(coordinator, num_processes, process_id)
    options: dict[str, Any] = {}
    if coordinator != AUTO:
        print(f"process {process_id} of {num_processes}: joining the others at {coordinator}", file=sys.stderr)
        options = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
        options["cluster_detection_method"] = "deactivate"
    with _join_timeout():
        try:
            jax.distributed.initialize(
                **options,
                initialization_timeout=_JOIN_SECONDS + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except (RuntimeError, ValueError, OSError) as error:
            if coordinator == AUTO:
                raise UserError(
                    f"--coordinator=auto: JAX cannot join a cluster here ({one_line(error)}); in a single process "
                    "omit the flag, elsewhere give --coordinator=HOST:PORT, --num_processes and --process_id"
                ) from error
            raise UserError(f"cannot join the other processes ({one_line(error)}); {_JOIN_ADVICE}") from error
        _check_equal_devices(Counter(device.process_index for device in jax.devices()))
    with abort_on_failure():
        check_same_everywhere({"--num_processes": num_processes})


def _check_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if coordinator == AUTO:
        if num_processes is not None or process_id is not None:
            raise UserError("--coordinator=auto detects --num_processes and --process_id; omit them")
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError("--coordinator=HOST:PORT, --num_processes and --process_id go together; one is missing")
    match = re.fullmatch(r".+:(\d+)", coordinator)
    if not match or not 0 < int(match[1]) < 65536:
        expected = "HOST:PORT of process 0, port 1 to 65535, or auto"
        raise UserError(f"--coordinator: expected {expected}, got {coordinator}")
    if num_processes < 1:
        raise UserError(f"--num_processes: expected at least 1, got {num_processes}")
    if not 0 <= process_id < num_processes:
        expected = f"0 to {num_processes - 1} with --num_processes={num_processes}"
        raise UserError(f"--process_id: expected {expected}, got {process_id}")


@contextlib.contextmanager
def _join_timeout() -> Iterator[None]:
    """Ends the process with one line when the others do not come: JAX would abort it with a C++ stack trace."""

    def give_up() -> None:
        print(
            f"error: the processes did not join within {_JOIN_SECONDS} s; {_JOIN_ADVICE}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread is inside JAX and cannot be interrupted

    timer = threading.Timer(_JOIN_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_equal_devices(counts: dict[int, int]) -> None:
    """Raises `UserError` unless every process has as many devices. Args: counts: {process: devices}."""
    if len(set(counts.values())) > 1:
        found = ", ".join(f"process {index} has {count}" for index, count in sorted(counts.items()))
        raise UserError(f"expected the same number of devices in every process, got: {found}")


@contextlib.contextmanager
def abort_on_failure() -> Iterator[None]:
    """In one of several processes, ends the process at once if the block fails; in a single one, does nothing.

    An orderly exit would wait for the other processes (orbax does when a manager closes, JAX when the interpreter
    ends) while they wait for this one in a collective operation. After `os._exit` they miss its heartbeat, and JAX
    ends them, too.
    """
    try:
        yield
    except Interrupted:  # all processes stop at the same step, and in order
        raise
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, (UserError, OSError)):
            print(error_line(error), file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            print("error: interrupted", file=sys.stderr)
        else:
            traceback.print_exception(error)
            print(
                "error: this process failed, see above; or another one ended first, see its output",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            # JAX's coordinator runs in this process and its end aborts the others, which may have met the same
            # error and be about to print it.
            time.sleep(_LAST_WORDS_SECONDS)
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def compiled_together(program: Any) -> Callable[..., Any]:
    """A jitted function that compiles at its first call, and first runs when every process has compiled it.

    A collective operation waits only half a minute for the other processes (Gloo), and one host may compile for
    minutes longer than another.
    """
    if jax.process_count() == 1:
        return program
    compiled = None

    def run(*args: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = program.lower(*args).compile()
            _barrier()
        return compiled(*args)

    return run


def _barrier() -> None:
    """Waits until every process is here. All processes pass the barriers of a run in the same order."""
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key=f"mtd_jax barrier {next(_barriers)}", timeout_ms=1000 * _BARRIER_SECONDS)


def exchange(value: Any) -> list[Any]:
    """The `value` of every process, in the order of the processes; anything that JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    _barrier()
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: data.size] = data
    gathered = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]


def check_same_everywhere(settings: dict[str, Any]) -> None:
    """Raises `UserError` in every process if one of them has other settings, data or weights than process 0."""
    first, *others = (traverse_util.flatten_dict(found, sep=".") for found in exchange(settings))
    for index, other in enumerate(others, start=1):
        different = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if different:
            raise UserError(f"process {index} and process 0 differ in {', '.join(different)}; all need the same")
