"""How tests compile programs that are small and run a few times: in a third of the time, to slower code."""

import os

import jax

QUICK = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later versions have one kind of emitter
    QUICK["xla_cpu_use_fusion_emitters"] = False


def quick_environment() -> dict[str, str]:
    """Variables for a process that is to compile everything so."""
    flags = [os.environ["XLA_FLAGS"], *(f"--{name}={str(value).lower()}" for name, value in QUICK.items())]
    return os.environ | {"XLA_FLAGS": " ".join(flags)}
