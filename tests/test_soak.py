"""A training that is killed ends with the same bits as one that is left alone: here in the middle of a save, the
other ways in distributed/test_launch.py."""

import pytest

from benchmarks.soak import KINDS, SoakError, compare, soak
from tests.helpers.compiling import quick_environment


@pytest.mark.slow
def test_a_kill_in_a_save_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", quick_environment()["XLA_FLAGS"])
    assert soak(tmp_path, kills=1, seed=0, kinds=KINDS[2:]) == {"SIGKILL in a save": 1}


def test_a_difference_is_noticed(tmp_path):
    for run, loss in (("alone", 1.0), ("killed", 2.0)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.jsonl").write_text(f'{{"step": 1, "total": {loss}}}\n')
    with pytest.raises(SoakError, match="logged steps differ"):
        compare(tmp_path / "alone", tmp_path / "killed")
