"""Process-wide JAX settings that commands share."""

import functools
import os
import pathlib

import jax

# On CPU, convolutions and reductions run faster through XLA's own kernels than through its YNNPACK fusions, dense
# layers slower: the tiny teacher's gradient takes 403 ms instead of 527 ms (2 cores, jax 0.10.2).
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def prepare():
    """Keeps compiled programs between processes, so that a second run starts in seconds."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "mtd_jax"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # All of them: `infer` has some 25 that compile in less than JAX's second, and a second together.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
    """What to pass to `jax.jit(compiler_options=…)` for "cpu", "gpu" or "tpu"; nothing where the compiler does not
    know it."""
    if platform != "cpu":
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS)(0)
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU_OPTIONS
