"""Compiled programs are kept between test runs; a small synthetic corpus is made once per session."""

import os

# Most of the time goes into LLVM, for programs that then run for a few steps: a fifth less of it. Read by JAX when
# it first computes, and by every process that a test starts.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1"

import jax  # noqa: E402
import pytest  # noqa: E402

from mtd_jax import compilation  # noqa: E402
from tests.helpers.compiling import QUICK  # noqa: E402


def pytest_configure(config):
    compilation.prepare()


def pytest_collection_modifyitems(items):
    """Files with a slow test first, so that none begins when everything else is done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def quick_training():
    """Trainings in the process of the tests are small: their steps are compiled quickly, and those of one
    configuration share them. (Those of processes of their own cannot: test_soak.py, test_launch.py.)"""
    from mtd_jax.training import step, train

    def once(name, key):
        function, made = getattr(train, name), {}

        def call(*arguments):
            found = key(*arguments)
            if found not in made:
                made[found] = function(*arguments)
            return made[found]

        patch.setattr(train, name, call)

    def by_options(options, *others):
        return options.to_json(), *others

    options = step.compiler_options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "compiler_options", lambda platform: options(platform) | QUICK)
        once("schedule_factor", by_options)
        once("make_optimizer", by_options)
        once("compile_steps", lambda run, *_: run)
        yield


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
