"""Clips out of ArrayRecords, built without TensorFlow: the same batches as from files, faults in one line."""

import json
import logging
import os
import pickle
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds

from mtd_jax.data import folder
from mtd_jax.data import records as records_module
from mtd_jax.data.clip import UnusableClip
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.data.pipeline import Loading, evaluation_pairs, make_training_iterator
from mtd_jax.data.records import VERSION, RecordSource, records_of
from mtd_jax.data.sampling import Pairing
from mtd_jax.data.sources import open_source
from mtd_jax.errors import UserError
from mtd_jax.evaluation.evaluate import evaluate_list
from mtd_jax.training.train import train, with_fingerprints
from tests.helpers.batches import assert_same, take
from tests.helpers.cli import ROOT, TINY, run_main
from tests.helpers.configs import small_config
from tests.helpers.odd_clips import DATASET, build_lists


@pytest.fixture(scope="module")
def corpus_output(corpus, tmp_path_factory):
    """The synthetic corpus, through the command, with two threads, and without TensorFlow."""
    output = tmp_path_factory.mktemp("corpus-records")
    command = [
        "tfds_builder",
        f"--root={corpus}",
        f"--output={output}",
        "--workers=2",
        "--lists=train.txt,val,test",
        "--record_frames=16",
    ]
    code = f"""
import sys
from mtd_jax.data.tfds_builder import main
status = main({command})
assert "tensorflow" not in sys.modules
sys.exit(status)
"""
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("train: 8 clips, 0 skipped") and lines[-1].startswith(f"data set: {output}")
    assert os.listdir(output) == ["lip_sync_clips"] and os.listdir(output / "lip_sync_clips") == [VERSION]
    return output


@pytest.mark.parametrize("record_frames", [1, 7, 16, 1000])
def test_clips_are_those_of_the_files(odd_clips, tmp_path, record_frames):
    build_lists(odd_clips, tmp_path, "train", record_frames=record_frames, shard_frames=60)
    files, records = Lrs2Source(odd_clips, "train", min_frames=6), RecordSource(tmp_path, "train", min_frames=6)
    assert [records[i].name for i in range(len(records))] == [files[i].name for i in range(len(files))]
    assert len(files) == 6
    for file, record in ((files[i], records[i]) for i in range(len(files))):
        assert record.num_frames == file.num_frames and len(record.frames) == len(file.frames)
        assert len(record.waveform) == len(file.waveform)
        for window in (slice(0, len(file.waveform)), slice(9_999, 13_199), slice(5, 5), slice(-7, None)):
            got = record.waveform[window]
            assert got.dtype == np.int16
            np.testing.assert_array_equal(got, file.waveform[window])
        for number in range(len(file.frames)):
            assert record.frames.encoded(number) == file.frames.encoded(number)
        windows = (slice(0, 5), slice(13, 18), slice(4, 4), slice(-4, None))
        for window in windows:
            np.testing.assert_array_equal(record.frames[window], file.frames[window])


@pytest.mark.parametrize("min_frames", [26, 41])
def test_the_same_clips_are_left_out(odd_clips, odd_output, min_frames, caplog):
    with caplog.at_level(logging.WARNING):
        files = Lrs2Source(odd_clips, "train", min_frames=min_frames)
        records = RecordSource(odd_output, "train", min_frames=min_frames)
    assert records.skipped == files.skipped
    first, second = (record.getMessage().split(": ", 1)[1] for record in caplog.records)
    assert first == second
    with pytest.raises(UserError, match="none of its 8 clips is usable"):
        RecordSource(odd_output, "train", min_frames=100)


@pytest.mark.parametrize("pairing", [Pairing("reference"), Pairing("grid", windows=3, min_gap=4)])
def test_batches_are_the_same_bit_for_bit(corpus, corpus_output, pairing):
    options = {"seed": 3, "batch_size": 6}
    sources = (
        open_source("lrs2", str(corpus), "train", min_frames=26),
        open_source("tfds", str(corpus_output), "train", min_frames=26),
    )
    files, records = (take(make_training_iterator(s, pairing, **options), 5) for s in sources)
    assert_same(records, files)
    workers = make_training_iterator(sources[1], pairing, loading=Loading(workers=1), start_batch=3, **options)
    assert_same(take(workers, 2), files[3:])
    evaluated = [list(evaluation_pairs(source, window_frames=5, **options)) for source in sources]
    assert_same(evaluated[1], evaluated[0])


def test_a_damaged_picture_is_met_by_the_same_draws(odd_clips, odd_output):
    options = {"seed": 1, "batch_size": 40}
    sources = Lrs2Source(odd_clips, "train", min_frames=26), RecordSource(odd_output, "train", min_frames=26)
    files, records = (take(make_training_iterator(s, Pairing("reference"), **options), 2) for s in sources)
    assert_same(records, files)
    assert sum(batch["skipped"].sum() for batch in files) > 0


def test_only_what_a_draw_needs_is_read_and_decoded(corpus_output, monkeypatch):
    source = RecordSource(corpus_output, "train", min_frames=26)
    parsed, decoded, this_thread = [], [], threading.get_ident()
    parse, decode = records_module.parse, simplejpeg.decode_jpeg

    def noting(function, calls):
        """`function`; `calls` gets what it returns here, not in threads of an earlier test that read ahead."""

        def call(*args, **options):
            found = function(*args, **options)
            if threading.get_ident() == this_thread:
                calls.append(found)
            return found

        return call

    monkeypatch.setattr(records_module, "parse", noting(parse, parsed))
    monkeypatch.setattr(folder.simplejpeg, "decode_jpeg", noting(decode, decoded))
    assert len(source[2].frames[17:22]) == 5
    assert len(decoded) == 5 and [(s.first_frame, len(s.frames)) for s in parsed] == [(16, 16)]
    parsed.clear()
    Pairing("grid", windows=8, min_gap=1).draw(np.random.default_rng(0), source[2])
    assert sorted(stretch.first_frame for stretch in parsed) == [0, 16, 32]  # eight windows, each record once


def test_lower_halves(corpus, corpus_output, tmp_path):
    build_lists(corpus, tmp_path, "test", lower_half=True)
    halves, faces = (RecordSource(root, "test", min_frames=26)[0] for root in (tmp_path, corpus_output))
    assert simplejpeg.decode_jpeg_header(halves.frames.encoded(7))[:2] == (48, 96)
    sizes = [sum(len(clip.frames.encoded(n)) for n in range(40)) for clip in (halves, faces)]
    assert sizes[0] < sizes[1]
    ours, theirs = (clip.frames[0:40].astype(float) for clip in (halves, faces))
    assert 0 < np.mean((ours - theirs) ** 2) < 255**2 / 10**4  # PSNR above 40 dB, and not the same
    np.testing.assert_array_equal(halves.waveform[:], faces.waveform[:])
    config = small_config(corpus)
    checksums = [
        with_fingerprints(
            config, open_source(form, str(root), "test", min_frames=26), None, None
        ).data.clips_checksum
        for form, root in (("lrs2", corpus), ("tfds", corpus_output), ("tfds", tmp_path))
    ]
    assert checksums[0] == checksums[1] != checksums[2]  # other pixels: no run goes on with them


def test_a_lower_half_that_cannot_be_made_is_kept_as_it_was(odd_clips, tmp_path):
    build_lists(odd_clips, tmp_path, "train", lower_half=True)
    source = RecordSource(tmp_path, "train", min_frames=26)
    clip = next(source[i] for i in range(len(source)) if source[i].name == "b/damaged")
    assert clip.frames[10:20].shape == (10, 48, 96, 3)
    with pytest.raises(UnusableClip, match="b/damaged: frame 20"):
        clip.frames[18:22]


def test_any_program_reads_it_with_tfds(corpus, corpus_output):
    source = tfds.data_source("lip_sync_clips", split="val", data_dir=corpus_output)
    clip = Lrs2Source(corpus, "val", min_frames=6)[0]
    record = source[1]
    assert (record["name"].decode(), record["first_frame"], len(record["frames"])) == (clip.name, 16, 16)
    np.testing.assert_array_equal(record["waveform"], clip.waveform[16 * 640 : 32 * 640])
    picture = cv2.imread(f"{corpus}/{clip.name}/17.jpg")[:, :, ::-1]
    np.testing.assert_allclose(record["frames"][1].astype(int), picture, atol=2)
    assert sum(records_of(np.array([40, 40]), np.array([25600, 25600]), 16)) == len(source)


def test_source_travels_to_another_process(corpus_output):
    source = RecordSource(corpus_output, "train", min_frames=26)
    frames = source[3].frames[4:9]  # its files are open now
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3].frames[4:9], frames)


@pytest.fixture
def one_shard(odd_clips, tmp_path):
    folder = build_lists(odd_clips, tmp_path, "train", record_frames=8)
    return tmp_path, folder / "lip_sync_clips-train.array_record-00000-of-00001"


def test_a_damaged_record_is_skipped_and_counted(one_shard):
    output, path = one_shard
    data = bytearray(path.read_bytes())
    source = RecordSource(output, "train", min_frames=26)
    at = data.index(source[1].waveform[9 * 640 : 10 * 640].tobytes())
    data[at] ^= 255
    path.write_bytes(data)
    source = RecordSource(output, "train", min_frames=26)
    with pytest.raises(UnusableClip, match="a/more-pictures: record 7 cannot be read"):
        source[1].frames[9:14]
    assert source[1].frames[16:30].shape == (14, 48, 96, 3)
    batches = take(make_training_iterator(source, Pairing("reference"), seed=0, batch_size=60), 2)
    assert sum(batch["skipped"].sum() for batch in batches) > 0


def test_records_of_another_order_are_noticed(one_shard):
    output, _ = one_shard
    source = RecordSource(output, "train", min_frames=26)
    source._first_record[1] += 1
    with pytest.raises(UnusableClip, match=r"record 7 is of a/more-pictures, frame 8; expected frame 0"):
        source[1].frames[0:5]


def damage(kind, folder, path):
    index = folder / "metadata.json"
    if kind == "missing shard":
        path.unlink()
    elif kind == "truncated shard":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "missing index":
        index.unlink()
    elif kind == "damaged index":
        index.write_text(index.read_text()[:-10])
    elif kind == "index of another build":
        index.write_text(index.read_text().replace('"record_frames": 8', '"record_frames": 9'))
    elif kind == "another version":
        folder.rename(folder.with_name("1.0.0"))
    elif kind == "never finished":
        (folder / "dataset_info.json").unlink()


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing shard", "the data set is incomplete: expected .* bytes in 1 files of split train, found 0"),
        ("truncated shard", "the data set is incomplete"),
        ("missing index", "expected an index of clips"),
        ("damaged index", "expected an index of clips"),
        ("index of another build", "belongs to another build"),
        ("another version", f"expected a complete data set .* in {DATASET}"),
        ("never finished", "expected a complete data set"),
    ],
)
def test_an_incomplete_data_set_is_one_clear_line(one_shard, kind, message):
    output, path = one_shard
    damage(kind, output / DATASET, path)
    with pytest.raises(UserError, match=message) as error:
        RecordSource(output, "train", min_frames=26)
    assert "\n" not in str(error.value)


def test_a_split_that_is_not_there(one_shard):
    with pytest.raises(UserError, match="no split 'pretrain'; it has train"):
        RecordSource(one_shard[0], "pretrain", min_frames=26)


def test_training_goes_on_when_files_become_records(corpus, corpus_output, tmp_path):
    config = small_config(corpus)
    config.epochs = 1
    train(config, tmp_path, report=lambda line: None)
    config.data.format, config.data.root, config.epochs = "tfds", str(corpus_output), 2
    said = []
    assert train(config, tmp_path, report=said.append)["steps"] == 4
    assert said[0].startswith("resumed from step 2 of 4")  # the clips' checksum is that of the files
    evaluate_list(config, tmp_path, "test", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["clips"]) == 3 and result["list"].endswith(f"{DATASET}, split test")


def test_the_command_trains_from_records(corpus_output, tmp_path):
    arguments = ["--config=configs/teacher.py:tiny", *TINY, "--config.model.stem_stride=(2,2)"]
    arguments += ["--config.model.last_stride=(1,1)", "--config.data.format=tfds"]
    arguments += [f"--config.data.root={corpus_output}", "--config.data.train_list=train"]
    arguments += ["--config.batch_size=4", "--config.epochs=1", "--config.data.workers=1"]
    trained = run_main("--mode=train", *arguments, f"--workdir={tmp_path / 'run'}")
    assert trained.returncode == 0, trained.stderr
    assert "validation" in trained.stdout
