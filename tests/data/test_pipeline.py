"""Batches: the same from the same seed, after a resume, from worker processes, and over several processes."""

import collections
import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mtd_jax.data import pipeline
from mtd_jax.data.clip import Clip, UnusableClip
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.data.pipeline import Extra, Loading, Shard, evaluation_pairs, make_training_iterator
from mtd_jax.data.sampling import Pairing
from mtd_jax.errors import UserError
from tests.helpers.batches import assert_same, take
from tests.helpers.clips import write_clip, write_list

REFERENCE = Pairing("reference")
GRID = Pairing("grid", windows=3, min_gap=4)


class _Broken:
    """A track that has a length and nothing else."""

    def __init__(self, name, length):
        self.name, self.length = name, length

    def __len__(self):
        return self.length

    def __getitem__(self, window):
        raise UnusableClip(self.name, "the file is gone")


class Clips:
    """Clip i has pictures of value i and noise as sound; those in `broken` have no readable pictures."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, frozenset(broken)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        frames = np.full((30, 48, 96, 3), index, np.uint8)
        sound = np.random.default_rng(index).normal(0, 3000, 30 * 640).astype(np.int16)
        return Clip(f"c/{index}", _Broken(f"c/{index}", 30) if index in self.broken else frames, sound)


class _Deadly(Clips):
    """Kills the process that reads it, as the system does when memory runs out."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def fresh_reports(monkeypatch):
    monkeypatch.setattr(pipeline, "_reported", set())


def training(source=None, pairing=REFERENCE, seed=3, batch_size=4, **options):
    return make_training_iterator(source or Clips(20), pairing, seed=seed, batch_size=batch_size, **options)


@pytest.mark.parametrize("pairing, windows", [(REFERENCE, 1), (GRID, 3)])
def test_shapes_and_types(pairing, windows):
    (batch,) = take(training(pairing=pairing), 1)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "frames": ((4, windows, 5, 48, 96, 3), "uint8"),
        "audio": ((4, windows, 3200), "int16"),
        "labels": ((4, windows, windows), "float32"),
        "skipped": ((4,), "int32"),
    }


def test_batches_follow_from_the_seed():
    batches = take(training(), 3)
    assert_same(batches, take(training(loading=Loading(threads=1, prefetch=1)), 3))
    other = take(training(seed=4), 1)
    assert not np.array_equal(batches[0]["audio"], other[0]["audio"])
    assert not np.array_equal(batches[0]["audio"], batches[1]["audio"])


def test_rows_are_numbered_draws_whatever_the_batch_size():
    small = take(training(batch_size=2), 6)
    large = take(training(batch_size=6), 2)
    for name in small[0]:
        np.testing.assert_array_equal(
            np.concatenate([batch[name] for batch in small]), np.concatenate([batch[name] for batch in large])
        )


def test_all_clips_are_drawn_about_equally_often():
    batches = take(training(Clips(5), batch_size=100), 10)
    drawn = collections.Counter(int(row[0, 0, 0, 0, 0]) for batch in batches for row in batch["frames"])
    assert set(drawn) == set(range(5))
    assert all(abs(times - 200) < 5 * 13 for times in drawn.values())
    assert abs(np.mean([batch["labels"] for batch in batches]) - 0.5) < 5 * 0.016


def test_resuming_from_any_batch():
    whole = take(training(), 6)
    for done in range(6):
        interrupted = training()
        for _ in range(done):
            next(interrupted)
        state = json.loads(json.dumps(interrupted.get_state()))
        interrupted.close()
        resumed = training()
        next(resumed)
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert_same(take(resumed, 6 - done), whole[done:])
        assert_same(take(training(start_batch=done), 6 - done), whole[done:])


def test_worker_processes_give_the_same_batches_and_resume():
    whole = take(training(pairing=GRID), 6)
    with_workers = training(pairing=GRID, loading=Loading(workers=2))
    assert_same([next(with_workers) for _ in range(3)], whole[:3])
    state = with_workers.get_state()
    assert_same([next(with_workers)], whole[3:4])
    with_workers.set_state(state)
    assert_same(take(with_workers, 3), whole[3:])
    in_threads = training(pairing=GRID)
    in_threads.set_state(state)
    assert_same(take(in_threads, 3), whole[3:])


def test_killed_workers_are_started_again_and_nothing_is_lost():
    whole = take(training(), 6)
    with_workers = training(loading=Loading(workers=1, prefetch=1))
    batches = [next(with_workers)]
    for worker in multiprocessing.active_children():
        worker.kill()
    assert_same(batches + take(with_workers, 5), whole)


def test_workers_that_always_die_are_an_error(monkeypatch):
    iterator = training(_Deadly(20), loading=Loading(workers=1))
    with pytest.raises(UserError, match="data workers died 3 times before batch 0 .* exit code -9"):
        next(iterator)
    iterator.close()


def test_workers_end_with_the_trainer(tmp_path):
    """Also with one that is killed, and they outlive a signal to the whole group of processes."""
    code = """
        import multiprocessing, os, signal
        from tests.data.test_pipeline import Loading, training
        iterator = training(loading=Loading(workers=1))
        next(iterator)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        for _ in range(20):
            next(iterator)
        print("alive", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    words = [sys.executable, "-c", f"if __name__ == '__main__':\n{code}"]
    done = subprocess.run(words, capture_output=True, text=True, start_new_session=True)
    pid, said = done.stdout.split()
    assert said == "alive" and "died" not in done.stderr
    end = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}/exe"):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_processes_share_the_global_batch_in_order():
    whole = take(training(), 3)
    parts = [take(training(shard=Shard(index, 2)), 3) for index in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_same(joined, whole)
    resumed = training(shard=Shard(1, 2))
    state = training(start_batch=2).get_state()
    resumed.set_state(state)
    assert_same(take(resumed, 1), parts[1][2:])


@pytest.mark.parametrize(
    "change, name",
    [
        ({"seed": 9}, "seed 3"),
        ({"batch_size": 8}, "batch_size 4"),
        ({"source": Clips(21)}, "clips 20"),
        ({"pairing": GRID}, "pairing"),
    ],
)
def test_a_state_of_other_data_is_refused(change, name):
    state = training().get_state()
    with pytest.raises(UserError, match=f"the checkpoint's training data have {name}"):
        training(**change).set_state(state)


def numbers(batches):
    """Which clip each window shows."""
    return np.concatenate([batch["frames"][:, :, 0, 0, 0, 0] for batch in batches])


def test_a_second_source_comes_in_first_alone_then_in_its_share():
    class More(Clips):
        def __getitem__(self, index):
            return super().__getitem__(index + 100)

    mixed = numbers(take(training(extra=Extra(More(20), 0.25, alone=40)), 150))[:, 0]
    assert (mixed[:40] >= 100).all()
    assert np.mean(mixed[40:] >= 100) == pytest.approx(0.25, abs=0.06)
    plain = numbers(take(training(), 150))[:, 0]
    assert set(plain) == set(range(20)) and np.mean(plain == mixed) < 0.5
    for share, alone in ((1.5, 0), (-0.1, 0), (0.5, -1)):
        with pytest.raises(UserError, match="share from 0 to 1"):
            Extra(More(20), share, alone)


def test_a_grid_of_several_clips_has_as_many_windows_of_each():
    pairing = Pairing("grid", windows=6, min_gap=4, clips=3)
    (batch,) = take(training(Clips(200), pairing), 1)
    assert batch["frames"].shape == (4, 6, 5, 48, 96, 3) and batch["audio"].shape == (4, 6, 3200)
    np.testing.assert_array_equal(batch["labels"], np.broadcast_to(np.eye(6), (4, 6, 6)))
    for row in numbers([batch]):
        assert row[0] == row[1] and row[2] == row[3] and row[4] == row[5] and len(set(row)) == 3
    assert pairing.min_frames == 9
    draw = pipeline.TrainingDraw(Clips(9, broken=range(5)), pairing, 3, 4, Shard())
    assert sum(draw(number)["skipped"] for number in range(12)) > 5
    with pytest.raises(UserError, match="divisor of the 6 windows"):
        Pairing("grid", windows=6, clips=4)
    with pytest.raises(UserError, match="divisor of the 1 windows"):
        Pairing("reference", clips=2)


def test_a_state_of_an_earlier_version_resumes_without_what_that_did_not_know():
    iterator = training(pairing=GRID)
    state = iterator.get_state()
    del state["augmentation"], state["extra"]
    assert "clips" not in state["pairing"]
    iterator.set_state(json.loads(json.dumps(state)))
    for other in (
        training(pairing=GRID, extra=Extra(Clips(3), 0.5)),
        training(pairing=Pairing("grid", 5, 3, 4, 3)),
    ):
        with pytest.raises(UserError, match="start afresh"):
            other.set_state(state)


def test_unusable_clips_are_passed_over_counted_and_logged_once(caplog):
    source = Clips(6, broken=[1, 4])
    with caplog.at_level(logging.WARNING):
        batches = take(training(source), 12)
    drawn = {int(value) for batch in batches for value in batch["frames"][:, 0, 0, 0, 0, 0]}
    assert drawn == {0, 2, 3, 5}
    skipped = np.concatenate([batch["skipped"] for batch in batches])
    assert 5 < skipped.sum() < 60 and skipped.min() == 0  # expected: half a clip per row, 24
    messages = sorted(record.getMessage() for record in caplog.records)
    assert messages == ["skipped c/1: the file is gone", "skipped c/4: the file is gone"]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_unusable_clips_is_an_error_not_a_loop(workers):
    iterator = training(Clips(3, broken=range(3)), loading=Loading(workers=workers))
    for _ in range(2):
        with pytest.raises(UserError) as info:
            next(iterator)
        message = r"16 unusable clips in one draw, the last one c/\d: the file is gone; check the data set"
        assert re.fullmatch(message, str(info.value))
    assert iterator.get_state()["next_batch"] == 0
    iterator.close()


def test_clips_too_short_for_the_pairing_say_so():
    with pytest.raises(UserError, match="30 frames, expected at least 86"):
        next(training(pairing=Pairing("grid", windows=10, min_gap=9)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"shard": Shard(0, 3)}, "batch size 4 does not divide over 3 processes"),
        ({"seed": -1}, "seed is -1"),
        ({"source": Clips(0)}, "no clips"),
    ],
)
def test_impossible_arguments(options, message):
    source = options.pop("source", Clips(20))
    with pytest.raises(UserError, match=message):
        make_training_iterator(source, REFERENCE, **{"seed": 3, "batch_size": 4, **options})
    with pytest.raises(UserError, match=message):
        evaluation_pairs(source, window_frames=5, **{"seed": 3, "batch_size": 4, **options})


def test_impossible_loading():
    for wrong in ({"workers": -1}, {"threads": 0}, {"prefetch": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Loading(**wrong)
    with pytest.raises(UserError, match="process 2 of 2"):
        Shard(2, 2)


def test_too_little_shared_memory_for_workers(monkeypatch):
    monkeypatch.setattr(pipeline.os.path, "isdir", lambda path: True)
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: usage(free=64 << 20))
    with pytest.raises(UserError, match="4 data workers need about .* MiB of /dev/shm, 64 MiB are free"):
        next(training(batch_size=128, loading=Loading(workers=4)))


def test_evaluation_takes_each_clip_in_turn():
    batches = list(evaluation_pairs(Clips(7), seed=3, batch_size=3, window_frames=5))
    assert [batch["valid"].tolist() for batch in batches] == [[True] * 3, [True] * 3, [True, False, False]]
    valid = np.concatenate([batch["frames"][batch["valid"]] for batch in batches])
    assert valid.shape == (7, 1, 5, 48, 96, 3)
    assert valid[:, 0, 0, 0, 0, 0].tolist() == list(range(7))
    assert not batches[-1]["frames"][1:].any() and not batches[-1]["audio"][1:].any()
    assert_same(batches, list(evaluation_pairs(Clips(7), seed=3, batch_size=3, window_frames=5)))
    workers = evaluation_pairs(Clips(7), seed=3, batch_size=3, window_frames=5, loading=Loading(workers=1))
    assert_same(batches, list(workers))


def test_evaluation_pairs_of_a_clip_differ_and_are_not_those_of_training():
    (batch,) = evaluation_pairs(Clips(2), seed=3, batch_size=8, window_frames=5, pairs_per_clip=4)
    assert batch["frames"][:, 0, 0, 0, 0, 0].tolist() == [0] * 4 + [1] * 4
    assert len({row.tobytes() for row in batch["audio"]}) > 5
    once = Clips(1)
    trained = take(training(once, batch_size=20), 1)[0]
    evaluated = next(evaluation_pairs(once, seed=3, batch_size=20, window_frames=5, pairs_per_clip=20))
    assert not np.array_equal(trained["labels"], evaluated["labels"])


def test_evaluation_over_processes_is_the_global_pass():
    whole = list(evaluation_pairs(Clips(7), seed=3, batch_size=4, window_frames=5))
    parts = [
        list(evaluation_pairs(Clips(7), seed=3, batch_size=4, window_frames=5, shard=Shard(index, 2)))
        for index in range(2)
    ]
    assert [len(part) for part in parts] == [2, 2]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_same(joined, whole)


def test_evaluation_counts_unusable_clips_and_needs_one_that_is_not():
    (batch,) = evaluation_pairs(Clips(4, broken=[2]), seed=3, batch_size=5, window_frames=5)
    assert batch["valid"].tolist() == [True, True, False, True, False]
    assert batch["skipped"].tolist() == [0, 0, 1, 0, 0]
    with pytest.raises(UserError, match="none of the 3 evaluation pairs"):
        list(evaluation_pairs(Clips(3, broken=range(3)), seed=3, batch_size=2, window_frames=5))


def test_from_disk_to_batches_with_workers(tmp_path):
    for name in ("a/0", "a/1", "b/0"):
        write_clip(tmp_path, name, seed=len(name))
    write_list(tmp_path, "a/0", "a/1", "b/0")
    source = Lrs2Source(tmp_path, "train", min_frames=26)
    (tmp_path / "a/1/audio.wav").unlink()  # after the index
    batches = take(training(source, GRID), 3)
    assert sum(batch["skipped"].sum() for batch in batches) > 0
    assert_same(take(training(source, GRID, loading=Loading(workers=2)), 3), batches)


def test_worker_processes_need_not_load_the_trainer():
    imports = "import sys, mtd_jax.data.pipeline, mtd_jax.data.lrs2"
    check = f"{imports}; print({{'flax', 'optax', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
