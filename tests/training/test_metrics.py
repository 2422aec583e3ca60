"""Metrics on a local disk, and on an object store that can neither append nor be seen half-written."""

import json

import pytest
from etils import epath

from mtd_jax.training import metrics
from mtd_jax.training.metrics import MetricWriter


@pytest.fixture(params=["disk", "object store"])
def workdir(request, tmp_path, monkeypatch):
    if request.param == "object store":
        monkeypatch.setattr(metrics, "is_remote", lambda path: True)
        kind = type(epath.Path(tmp_path))
        opened = kind.open

        def no_append(self, mode="r", **options):
            assert "a" not in mode
            return opened(self, mode, **options)

        monkeypatch.setattr(kind, "open", no_append)
    return epath.Path(tmp_path)


def steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_beyond_the_checkpoint_go_and_the_others_stay(workdir):
    writer = MetricWriter(workdir, 0)
    for step in range(1, 6):
        writer.write(step, {"total": 0.5})
        if step == 3:
            writer.flush()
            assert steps(workdir) == [1, 2, 3]
    writer.close()
    assert steps(workdir) == [1, 2, 3, 4, 5]
    resumed = MetricWriter(workdir, 3)
    resumed.write(4, {"total": 0.25})
    resumed.close()
    assert steps(workdir) == [1, 2, 3, 4]
    events = list((workdir / "tensorboard").iterdir())
    assert events and all(file.stat().length > 100 for file in events)
