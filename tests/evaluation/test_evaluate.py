"""An evaluation that is broken off ends, instead of scoring what waits."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mtd_jax.data.clip import Clip
from mtd_jax.evaluation import evaluate as module
from mtd_jax.network.model import ModelConfig, SyncModel


class Clips:
    """Twenty clips of a second and a half."""

    skipped: dict = {}

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return Clip(str(index), np.zeros((36, 48, 96, 3), np.uint8), np.zeros(36 * 640, np.int16))


def test_after_ctrl_c_no_further_clip_is_scored(monkeypatch):
    scored, leaving = [], threading.Event()

    class Threads(ThreadPoolExecutor):
        def shutdown(self, *args, **options):
            leaving.set()
            super().shutdown(*args, **options)

    def score(*_, **__):
        scored.append(1)
        time.sleep(0.5)  # the other threads have read their clips by now, and wait
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert leaving.wait(60)
        return np.zeros((31, 31), np.float32)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    monkeypatch.setattr(module, "ThreadPoolExecutor", Threads)
    monkeypatch.setattr(module, "Scorer", lambda *_: score)
    try:
        with pytest.raises(KeyboardInterrupt):
            module.evaluate(SyncModel(ModelConfig.tiny(num_layers=1), seed=0), Clips(), progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(scored) == 1
