"""Compiled programs are kept between test runs; a small synthetic corpus is made once per session."""

import os

import jax
import pytest

from mtd_jax import compilation

# Most of the time goes into compiling programs that then run for a few steps. Without LLVM's optimisations, and by
# XLA's older emitters as long as it has them, that takes a third of the time. Read by JAX when it first computes,
# and by every process that a test starts; what the caller has set counts more.
_FAST_COMPILE = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):
    _FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{_FAST_COMPILE} {os.environ.get('XLA_FLAGS', '')}"


def pytest_configure(config):
    compilation.prepare()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Eight training, two validation and three test clips of 1.6 s."""
    from mtd_jax.synthetic.corpus import synthesize

    counts = {"train_clips": 8, "val_clips": 2, "test_clips": 3, "mp4_clips": 1}
    return synthesize(tmp_path_factory.mktemp("data") / "corpus", seconds=1.6, progress=False, workers=1, **counts)


@pytest.fixture(scope="session")
def odd_clips(tmp_path_factory):
    """Clips of many lengths and faults, see `tests.helpers.odd_clips`."""
    from tests.helpers.odd_clips import write_odd_clips

    return write_odd_clips(tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="session")
def odd_output(odd_clips, tmp_path_factory):
    """ArrayRecords of them, in several shards."""
    from tests.helpers.odd_clips import build_lists

    output = tmp_path_factory.mktemp("odd-records")
    build_lists(odd_clips, output, "train", shard_frames=100)
    return output


@pytest.fixture
def no_rank_promotion():
    """An array that JAX would silently repeat along axes that it lacks is an error: a misplaced axis shows."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def free_compiled_programs():
    yield
    jax.clear_caches()
