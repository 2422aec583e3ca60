"""Compiled programs are kept between test runs; a small synthetic corpus is made once per session."""

import jax
import pytest

from mtd_jax import platform


def pytest_configure(config):
    platform.prepare()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Eight training, two validation and three test clips of 1.6 s."""
    from mtd_jax.data.corpus import synthesize

    counts = {"train_clips": 8, "val_clips": 2, "test_clips": 3, "mp4_clips": 1}
    return synthesize(tmp_path_factory.mktemp("data") / "corpus", seconds=1.6, progress=False, workers=1, **counts)


@pytest.fixture(autouse=True, scope="module")
def free_compiled_programs():
    yield
    jax.clear_caches()
