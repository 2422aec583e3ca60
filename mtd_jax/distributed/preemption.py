"""Graceful shutdown: after SIGTERM or Ctrl-C a training saves its current step, the same one in all processes.

In a single process a Python handler takes note of both signals. In several, JAX's preemption service does the
work: `jax.distributed.initialize` installs a SIGTERM handler in C++, and a notice in any process makes all of them
agree on the next step that none has passed yet. Python could not restore that handler once it has replaced it, so
nothing here touches SIGTERM in several processes; Ctrl-C is passed on as a SIGTERM of the process to itself.
"""

import os
import signal
import threading
from pathlib import PurePath
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

from mtd_jax.distributed.launch import exchange
from mtd_jax.errors import PREEMPTED, Interrupted

_INTERRUPTED = 128 + signal.SIGINT
_NOTICE = b"will save after this step and stop; repeat the signal to stop now\n"


class Preemption:
    """Records SIGTERM and Ctrl-C, from `listen` to the end of the `with` block, so that a loop can stop safely.

    The first signal is recorded, and a second one acts as it did before `listen` (in several processes, a second
    Ctrl-C). Outside the main thread, where Python cannot handle signals, a single process records none.
    """

    def __init__(self) -> None:
        self._received = 0
        self._handlers: dict[int, Any] = {}  # those that `listen` replaced

    def __enter__(self) -> "Preemption":
        return self

    def listen(self) -> None:
        """Starts to record. Before the first step, when nothing would be lost, let signals end the run."""
        if threading.current_thread() is threading.main_thread():
            several = jax.distributed.is_initialized()
            numbers = [signal.SIGINT] if several else [signal.SIGINT, signal.SIGTERM]
            self._handlers = {number: signal.signal(number, self._record) for number in numbers}

    def reached(self, step: int) -> bool:
        """Whether to save this step and stop. Call it after every step; all processes get the same answer."""
        if not jax.distributed.is_initialized():
            return self._received != 0
        return multihost_utils.reached_preemption_sync_point(step)

    def reached_before(self, step: int) -> bool:
        """Whether a notice came before a resumed run, which has `step` steps already, restored them.

        JAX lets the processes agree on one more than the largest step that any has asked about, at first on 1.
        A resumed run would not ask about such a small step again, so it asks about each of them here.
        """
        return any(self.reached(earlier) for earlier in range(1, step + 1))

    def interrupted(self, step: int, total_steps: int, workdir: PurePath) -> Interrupted:
        """The exception to raise once this step's checkpoint is written; call it in all processes.

        Its exit code is 75 after SIGTERM, and 130 if any of the processes received Ctrl-C.
        """
        by_hand = any(exchange(self._received == signal.SIGINT))
        name, code = ("SIGINT", _INTERRUPTED) if by_hand else ("SIGTERM", PREEMPTED)
        return Interrupted(f"{name}: saved step {step} of {total_steps} in {workdir}; rerun to resume", code)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._restore()

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self._restore()
        self._received = number
        os.write(2, _NOTICE)
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._handlers = {}
