"""How JAX compiles: a persistent cache for commands, and compiler options by platform."""

import functools

import jax

from mtd_jax.storage import cache_folder

# On CPU, YNNPACK fusions are faster than XLA's own kernels for dense layers, but slower for convolutions and
# reductions. Used for dense layers alone, the tiny teacher's gradient takes 403 ms instead of 527 ms (2 cores,
# jax 0.10.2).
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def prepare() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second run starts in seconds.

    For commands alone, since it affects the whole process. A cache that the user has configured stays as it is.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        # JAX caches only what takes a second to compile; `infer` has some 25 smaller programs, a second in all.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
    """The `compiler_options` of `jax.jit` for "cpu", "gpu" or "tpu"; empty if this compiler does not know them."""
    if platform != "cpu":
        return {}
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS)(0)
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU_OPTIONS
