"""Jobs in processes: all get done, and one that dies costs itself only."""

import os
import signal

import pytest

from mtd_jax.parallel import Crashed, run_jobs

OPTIONS = {"what": "", "progress": False}


def square(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number < 0:
        raise ValueError("negative")
    return number**2


def test_a_job_that_kills_its_process_costs_itself_only():
    done = dict(run_jobs(square, range(9), workers=2, **OPTIONS))
    assert isinstance(done.pop(3), Crashed)
    assert done == {n: n**2 for n in range(9) if n != 3}


def test_an_exception_ends_the_run():
    with pytest.raises(ValueError, match="negative"):
        list(run_jobs(square, [1, -1], workers=2, **OPTIONS))


def test_one_worker_is_this_process():
    assert list(run_jobs(square, [5, 4], workers=1, **OPTIONS)) == [(5, 25), (4, 16)]
    assert list(run_jobs(square, [], workers=None, **OPTIONS)) == []
