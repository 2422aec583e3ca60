"""Several processes that work as one: how they find each other, and how they exchange small things.

One process is the default and needs nothing of this.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import sys
import threading
from collections import Counter

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.experimental import multihost_utils

from mtd_jax import peers
from mtd_jax.errors import UserError, one_line

# JAX's own heartbeats notice late, but also what keeps the connections of `peers` open.
_HEARTBEAT_SECONDS = 100
_START_SECONDS = 300
_NOTICE_SECONDS = 10
_SHUTDOWN_SECONDS = 60
_MEETING_SECONDS = 3600  # to wait for a process that indexes its clips, or compiles
_meetings = itertools.count()
_NAMES = "the name of every host must stand for an address that the others can reach"
_APART = f"the processes did not come together within {_START_SECONDS} s"
_TOGETHER = "start all of them, with the same coordinator and number of processes, and each with its own number"


def start(coordinator: str | None, num_processes: int | None, process_id: int | None):
    """Joins this process to the others; to be called before anything touches a device.

    Args:
      coordinator: HOST:PORT of process 0. With all three None, what SLURM, Open MPI or a TPU pod say is used, and
        where they say nothing this is the only process.

    Raises:
      UserError: if the flags do not fit together, or the others do not come.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == 3:
        if not announced(os.environ):
            return
        options = {"local_device_ids": slurm_gpus(os.environ)}
    else:
        _check_flags(missing, coordinator, num_processes, process_id)
        options = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
        options["cluster_detection_method"] = "deactivate"
    # Signals are `signals.Signals`' business: JAX's service would take SIGTERM away from it.
    jax.config.update("jax_enable_preemption_service", False)
    with _patience():
        try:
            jax.distributed.initialize(
                **options,
                initialization_timeout=_START_SECONDS + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except (RuntimeError, ValueError, OSError) as error:
            if coordinator is None and "should be defined" in str(error):  # chips, but no cluster around them
                return
            raise UserError(f"{_APART} ({one_line(error)}); {_TOGETHER}") from error
        if jax.process_count() > 1:  # where they disagree on the number, this waits, too
            _check_equal_devices(Counter(device.process_index for device in jax.devices()))
            try:
                _watch_each_other(coordinator)
            except jax.errors.JaxRuntimeError as error:
                line = f"error: the processes cannot reach each other ({one_line(error)}); {_NAMES}"
                print(line, file=sys.stderr, flush=True)
                os._exit(1)  # leaving in order would wait for the others, and then be aborted
            check_same_everywhere({"--num_processes": num_processes})


def _watch_each_other(coordinator: str | None):
    server, where = peers.listen() if jax.process_index() == 0 else (None, None)
    where = exchange(where)[0]
    named = coordinator.rpartition(":")[0].strip("[]") if coordinator else None
    peers.watch(jax.process_index(), jax.process_count(), where, server, named)
    exchange(None)  # from here on all know of each other


@contextlib.contextmanager
def _patience():
    """Ends the process when the others do not come: JAX would abort it, with a dump of its stacks."""

    def tell():
        print("waiting for the other processes", file=sys.stderr)

    def give_up():
        print(f"error: {_APART}; {_TOGETHER}", file=sys.stderr, flush=True)
        os._exit(1)

    timers = [threading.Timer(_NOTICE_SECONDS, tell), threading.Timer(_START_SECONDS, give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _check_flags(missing, coordinator, num_processes, process_id):
    if missing:
        raise UserError(
            f"--coordinator, --num_processes and --process_id go together; missing: {', '.join(missing)}"
        )
    match = re.fullmatch(r".+:(\d+)", coordinator)
    if not match or not 0 < int(match[1]) < 65536:
        raise UserError(f"--coordinator: expected HOST:PORT of process 0, port 1 to 65535, got {coordinator}")
    if num_processes < 1:
        raise UserError(f"--num_processes: expected at least 1, got {num_processes}")
    if not 0 <= process_id < num_processes:
        expected = f"0 to {num_processes - 1} with --num_processes={num_processes}"
        raise UserError(f"--process_id: expected {expected}, got {process_id}")


def announced(environment) -> bool:
    """Whether this process was started as one of several. (One task of SLURM has nobody to wait for.)"""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(environment.get(name, 1)) > 1:
            return True
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    chips = [*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*")]
    return "tpu" in platforms and bool(chips) and importlib.util.find_spec("libtpu") is not None


def slurm_gpus(environment) -> list[int] | None:
    """The GPUs of a task of SLURM, counted among those it sees; None: it is as JAX takes it to be.

    JAX takes task i of a node to see all GPUs of the node, and gives it the i-th. But `--gpus-per-task` shows each
    task its own alone, and the only task of a node has all.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if "SLURM_STEP_NUM_TASKS" not in environment or visible == [""]:
        return None
    alone = re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return list(range(len(visible))) if alone or len(visible) == 1 else None


def _check_equal_devices(counts: dict[int, int]):
    if len(set(counts.values())) > 1:
        found = ", ".join(f"process {index} has {count}" for index, count in sorted(counts.items()))
        raise UserError(
            f"expected as many devices in every process, got: {found}; start each with the same number"
        )


def compiled_together(program):
    """A jitted function that is compiled at its first call, and not run before every process has compiled it.

    A collective operation waits half a minute for the others (Gloo), and one host may compile minutes longer.
    """
    if jax.process_count() == 1:
        return program
    compiled = None

    def run(*args):
        nonlocal compiled
        if compiled is None:
            compiled = program.lower(*args).compile()
            _meet()
        return compiled(*args)

    return run


def _meet():
    """Waits for all processes, which pass their meetings in the same order."""
    meet = ocp.multihost.get_barrier_sync_fn()
    meet(key=f"meeting {next(_meetings)}", timeout_ms=1000 * _MEETING_SECONDS)


def exchange(value) -> list:
    """What every process has, in their order: `value` is anything JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    _meet()
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: data.size] = data
    gathered = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)]


def check_same_everywhere(settings: dict):
    """Raises a `UserError` in every process if one of them has other settings (JSON), data or weights."""
    first, *others = (traverse_util.flatten_dict(found, sep=".") for found in exchange(settings))
    for index, other in enumerate(others, start=1):
        different = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if different:
            raise UserError(f"process {index} and process 0 differ in {', '.join(different)}; all need the same")
