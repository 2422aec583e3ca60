"""SIGTERM and Ctrl-C as a wish to stop: noted when they come, granted where nothing is lost."""

import os
import signal
import threading

from mtd_jax.errors import Interrupted
from mtd_jax.peers import GONE

_EXIT_CODES = {signal.SIGTERM: GONE, signal.SIGINT: 128 + signal.SIGINT}
_NOTICE = b"stopping after one more step, with a checkpoint; once more ends it at once\n"


def end_at_once_on_sigterm():
    """For the time in which a run has nothing to save: SIGTERM ends it, to be started again."""

    def end(*_):
        os.write(2, b"SIGTERM: ended at once; start the same command again\n")
        os._exit(GONE)

    signal.signal(signal.SIGTERM, end)


class Signals:
    """From `listen` to its exit, the first SIGTERM or SIGINT sets `received` to its number; a second acts as ever.

    Outside the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self):
        self.received = 0
        self._before = {}

    def __enter__(self):
        return self

    def listen(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _EXIT_CODES}

    def __exit__(self, *_):
        self._restore()

    def _note(self, number, _frame):
        self._restore()
        self.received = number
        os.write(2, _NOTICE)

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}


def interrupted(number: int, step: int, total_steps: int, workdir) -> Interrupted:
    """The exception for a run that a signal has stopped after a step, with its checkpoint written."""
    name = signal.Signals(number).name
    line = f"{name}: step {step} of {total_steps} is saved in {workdir}; the same command goes on from there"
    return Interrupted(line, _EXIT_CODES[number])
