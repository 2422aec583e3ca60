"""The demo from end to end, at a size at which nothing is learned: every stage runs, and a second call resumes."""

import json

import pytest

from mtd_jax.demo import LABELS, Size, demo

TOY = Size(
    train_clips=4,
    val_clips=2,
    test_clips=2,
    seconds=1.6,
    video_seconds=2.0,
    changes={
        "model.widths": (4, 4, 8, 8, 8),
        "model.num_heads": 2,
        "model.num_layers": 1,
        "data.windows": 2,
        "batch_size": 2,
        "val_batch_size": 2,
        "val_pairs_per_clip": 1,
        "draws_per_epoch": 4,
        "epochs": 1,
    },
)


@pytest.mark.slow
def test_the_whole_story(tmp_path, capsys):
    summary = demo(tmp_path, 3, TOY)
    out = capsys.readouterr().out
    assert [f"[{number}/6]" in out for number in range(1, 7)] == [True] * 6
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    for variant in LABELS:
        assert set(summary[variant]["accuracy"]) == {"5", "7", "9", "11", "13", "15"}
        assert summary[variant]["params"] > 1000
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "fixed.mp4").stat().st_size > 1000
    assert abs(summary["shifted_clip"]["true_offset"]) >= 4
    again = demo(tmp_path, 3, TOY)
    assert capsys.readouterr().out.count("nothing to do") == 3
    assert all(again[variant]["accuracy"] == summary[variant]["accuracy"] for variant in LABELS)
