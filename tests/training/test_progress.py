"""What a running training says of its speed."""

from types import SimpleNamespace

import pytest

from mtd_jax.training import metrics as progress


@pytest.mark.parametrize("log_every", [1, 3])
def test_speed_does_not_contain_the_compilation_of_the_first_step(log_every, monkeypatch):
    config = SimpleNamespace(log_every=log_every, batch_size=4, optimizer=SimpleNamespace(learning_rate=1.0))
    clock, written = SimpleNamespace(now=0.0), {}
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    writer = SimpleNamespace(write=lambda step, values: written.update({step: values.get("clips_per_second")}))
    shown = progress.Progress(
        config=config,
        writer=writer,
        report=lambda line: None,
        factor=lambda step: 1.0,
        first=10,
        total_steps=20,
        manager=None,
    )
    for step in range(11, 20):
        clock.now += 100 if step == 11 else 2
        metrics = dict.fromkeys(("total", "bce", "gradient_norm"), 1.0) | {"skipped_clips": 0}
        shown.after_dispatch(step, metrics)
        shown.catch_up()
    assert written == (
        {12: 2.0, 15: 2.0, 18: 2.0} if log_every == 3 else {11: None} | dict.fromkeys(range(12, 20), 2.0)
    )
