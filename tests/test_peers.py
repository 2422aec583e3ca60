"""Processes that watch each other: whatever ends one ends all, with one line and the same exit code."""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parent.parent
START = """
import json, sys, time
from mtd_jax import peers
from mtd_jax.errors import UserError
index = int(sys.argv[1])
server, where = peers.listen() if index == 0 else (None, json.loads(sys.argv[2]))
if index == 0:
    print(json.dumps(where), flush=True)
peers.watch(index, 3, where, server, "127.0.0.1")
print("here", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def three():
    """Starts three processes that run the code; returns them when they have found each other."""
    started = []

    def start(code, stranger=None):
        def begin(*arguments):
            words = [sys.executable, "-c", START + textwrap.dedent(code), *arguments]
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            started.append(subprocess.Popen(words, cwd=ROOT, text=True, **pipes))
            return started[-1]

        where = begin("0").stdout.readline()
        if stranger:
            stranger(json.loads(where))
        for index in ("1", "2"):
            begin(index, where)
        for process in started:
            assert process.stdout.readline() == "here\n"
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends(started):
    return [(process.wait(timeout=60), process.stderr.read().strip()) for process in started]


WAIT = "time.sleep(120)"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_missed_by_all(three, victim):
    started = three(WAIT)
    started[victim].send_signal(signal.SIGKILL)
    for index, (code, said) in enumerate(ends(started)):
        if index != victim:
            assert code == 75
            assert said.startswith(f"error: process {victim} went away; start all of them again")
            assert "\n" not in said


@pytest.mark.parametrize("author", [0, 2])
def test_the_error_of_one_is_told_to_all(three, author):
    started = three(
        f"""
        if index == {author}:
            with peers.all_or_none():
                raise UserError("config.x: expected 1, got 2")
        {WAIT}
        """
    )
    for index, (code, said) in enumerate(ends(started)):
        who = "" if index == author else f"process {author}: "
        assert (code, said) == (1, f"error: {who}config.x: expected 1, got 2")


def test_work_that_is_done_is_no_loss(three):
    started = three("peers.finish()\nif index != 1:\n    time.sleep(1)")
    assert ends(started) == [(0, "")] * 3


def test_a_stranger_is_sent_away(three):
    def stranger(where):
        with socket.create_connection(("127.0.0.1", where["port"])) as connection:
            connection.sendall(b'{"token": "guessed", "hello": 1, "code": 9, "line": "stop"}\n')
            assert connection.recv(1) == b""

    started = three("peers.finish()", stranger)
    assert ends(started) == [(0, "")] * 3
