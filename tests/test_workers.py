"""Jobs in processes: all get done, and one that dies costs itself only."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mtd_jax.workers import Crashed, ahead, run_jobs, usable_cores

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


def note_and_wait(folder):
    (pathlib.Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(number, tmp_path):
    code = "import sys, test_workers as t; "
    code += "list(t.run_jobs(t.note_and_wait, sys.argv[1:] * 2, workers=2, **t.OPTIONS))"
    here = pathlib.Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    starter = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(note.name) for note in tmp_path.iterdir()]
    assert all(map(is_running, workers))
    starter.send_signal(number)
    starter.wait()
    wait_until(lambda: not any(map(is_running, workers)))


def wait_until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that binds processes to cores")
def test_cores_are_those_of_the_process():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from mtd_jax.workers import usable_cores; print(usable_cores())"
    assert subprocess.check_output([sys.executable, "-c", code]).strip() == b"1"
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_items_prepared_ahead_come_in_order_and_failures_in_their_place():
    prepared = []

    def items():
        for number in range(6):
            prepared.append(number)
            yield number
        raise ZeroDivisionError

    received = []
    with pytest.raises(ZeroDivisionError):
        for number in ahead(items(), 3):
            received.append(number)
            assert number < 5 or prepared == list(range(6))
    assert received == list(range(6))
    prepared.clear()
    some = ahead(items(), 3)
    assert next(some) == 0
    some.close()  # waits for what is being prepared, and asks for no more
    assert prepared == [0, 1, 2, 3][: len(prepared)] and len(prepared) >= 3
