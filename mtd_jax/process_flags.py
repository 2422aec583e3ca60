"""The flags that join several processes into one run; imports no JAX."""

from absl import flags

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "train, evaluate, over several processes: HOST:PORT of process 0, any free port, or auto: JAX detects SLURM, "
    "Open MPI or a TPU pod.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "train, evaluate: how many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "train, evaluate: which of them this one is, from 0 on.")


def process_options() -> tuple[str | None, int | None, int | None]:
    """The arguments of `distributed.launch.start`."""
    return _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
