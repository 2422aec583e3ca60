"""ArrayRecord data sets: built without TensorFlow, whole or not at all; the same batches as from files."""

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

from mtd_jax.data import tfds_builder, tfds_shards, tfds_source, views
from mtd_jax.data.lrs2 import Lrs2Source
from mtd_jax.data.pipeline import Loading, evaluation_pairs, make_training_iterator
from mtd_jax.data.records import index_file, records_of
from mtd_jax.data.sampling import Pairing
from mtd_jax.data.source import open_source
from mtd_jax.data.tfds_builder import Contents, build
from mtd_jax.data.tfds_source import TfdsSource
from mtd_jax.data.unusable import UnusableClip
from mtd_jax.errors import UserError
from mtd_jax.evaluate import evaluate_list
from mtd_jax.train import train, with_fingerprints
from tests.test_lrs2 import write_clip, write_list
from tests.test_main import ROOT, TINY, run_main
from tests.test_pipeline import assert_same, take
from tests.test_train import small_config

DATASET = "lip_sync_clips/1.0.0"


def build_lists(root, output, *lists, workers=1, **options):
    sources = {name: open_source("lrs2", str(root), name, min_frames=0) for name in lists}
    return build(Contents(sources, **options), output, workers=workers, progress=False)


@pytest.fixture(scope="module")
def odd_clips(tmp_path_factory):
    """Clips of many lengths, unusable ones, and one with a picture that cannot be decoded."""
    root = tmp_path_factory.mktemp("odd")
    write_clip(root, "a/48", frames=48, seed=1)
    write_clip(root, "a/more-pictures", frames=50, samples=40 * 640 - 3, seed=2)
    write_clip(root, "a/more-sound", frames=33, samples=90 * 640 + 5, seed=3)
    write_clip(root, "a/short", frames=25, seed=4)
    write_clip(root, "b/faces-of-another-size", frames=30, face=(120, 90), seed=5)
    write_clip(root, "b/damaged", frames=40, seed=6)
    (root / "b/damaged/20.jpg").write_bytes(b"no picture")
    write_clip(root, "b/gap", frames=30)
    (root / "b/gap/3.jpg").unlink()
    names = ["48", "more-pictures", "more-sound", "short"]
    write_list(root, *(f"a/{name}" for name in names), "b/faces-of-another-size", "b/damaged", "b/gap", "b/none")
    return root


@pytest.fixture(scope="module")
def odd_output(odd_clips, tmp_path_factory):
    output = tmp_path_factory.mktemp("odd-records")
    build_lists(odd_clips, output, "train", shard_frames=100)
    return output


@pytest.fixture(scope="module")
def corpus_output(corpus, tmp_path_factory):
    """The synthetic corpus, through the command, in two processes, and without TensorFlow."""
    output = tmp_path_factory.mktemp("corpus-records")
    command = [
        "",
        f"--root={corpus}",
        f"--output={output}",
        "--workers=2",
        "--lists=train.txt,val,test",
        "--record_frames=16",
    ]
    code = f"""
import sys
from mtd_jax.data.tfds_builder import run
if __name__ == "__main__":
    status = run({command})
    assert "tensorflow" not in sys.modules
    sys.exit(status)
"""
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("train: 8 clips, 0 left out") and lines[-1].startswith(f"data set: {output}")
    assert sorted(os.listdir(output)) == [".lip_sync_clips.lock", "lip_sync_clips"]
    return output


@pytest.mark.parametrize("record_frames", [1, 7, 16, 1000])
def test_clips_are_those_of_the_files(odd_clips, tmp_path, record_frames):
    build_lists(odd_clips, tmp_path, "train", record_frames=record_frames, shard_frames=60)
    files, records = Lrs2Source(odd_clips, "train", min_frames=6), TfdsSource(tmp_path, "train", min_frames=6)
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
        records = TfdsSource(odd_output, "train", min_frames=min_frames)
    assert records.skipped == files.skipped
    first, second = (record.getMessage().split(": ", 1)[1] for record in caplog.records)
    assert first == second
    with pytest.raises(UserError, match="none of its 8 clips is usable"):
        TfdsSource(odd_output, "train", min_frames=100)


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
    sources = Lrs2Source(odd_clips, "train", min_frames=26), TfdsSource(odd_output, "train", min_frames=26)
    files, records = (take(make_training_iterator(s, Pairing("reference"), **options), 2) for s in sources)
    assert_same(records, files)
    assert sum(batch["skipped"].sum() for batch in files) > 0


def test_only_what_a_draw_needs_is_read_and_decoded(corpus_output, monkeypatch):
    source = TfdsSource(corpus_output, "train", min_frames=26)
    parsed, decoded, this_thread = [], [], threading.get_ident()
    parse, decode = tfds_source.parse, simplejpeg.decode_jpeg

    def noting(function, calls):
        """`function`; `calls` gets what it returns here, not in threads of an earlier test that read ahead."""

        def call(*args, **options):
            found = function(*args, **options)
            if threading.get_ident() == this_thread:
                calls.append(found)
            return found

        return call

    monkeypatch.setattr(tfds_source, "parse", noting(parse, parsed))
    monkeypatch.setattr(views.simplejpeg, "decode_jpeg", noting(decode, decoded))
    assert len(source[2].frames[17:22]) == 5
    assert len(decoded) == 5 and [(s.first_frame, len(s.frames)) for s in parsed] == [(16, 16)]
    parsed.clear()
    Pairing("grid", windows=8, min_gap=1).draw(np.random.default_rng(0), source[2])
    assert sorted(stretch.first_frame for stretch in parsed) == [0, 16, 32]  # eight windows, each record once


def test_lower_halves(corpus, corpus_output, tmp_path):
    build_lists(corpus, tmp_path, "test", lower_half=True)
    halves, faces = (TfdsSource(root, "test", min_frames=26)[0] for root in (tmp_path, corpus_output))
    assert simplejpeg.decode_jpeg_header(halves.frames.encoded(7))[:2] == (48, 96)
    sizes = [sum(len(clip.frames.encoded(n)) for n in range(40)) for clip in (halves, faces)]
    assert sizes[0] < sizes[1]
    ours, theirs = (clip.frames[0:40].astype(float) for clip in (halves, faces))
    assert 0 < np.mean((ours - theirs) ** 2) < 255**2 / 10**4  # PSNR above 40 dB, and not the same
    np.testing.assert_array_equal(halves.waveform[:], faces.waveform[:])
    config = small_config(corpus)
    checksums = [
        with_fingerprints(config, open_source(form, str(root), "test", min_frames=26), None).data.clips_checksum
        for form, root in (("lrs2", corpus), ("tfds", corpus_output), ("tfds", tmp_path))
    ]
    assert checksums[0] == checksums[1] != checksums[2]  # other pixels: no run goes on with them


def test_a_lower_half_that_cannot_be_made_is_kept_as_it_was(odd_clips, tmp_path):
    build_lists(odd_clips, tmp_path, "train", lower_half=True)
    source = TfdsSource(tmp_path, "train", min_frames=26)
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
    source = TfdsSource(corpus_output, "train", min_frames=26)
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
    source = TfdsSource(output, "train", min_frames=26)
    at = data.index(source[1].waveform[9 * 640 : 10 * 640].tobytes())
    data[at] ^= 255
    path.write_bytes(data)
    source = TfdsSource(output, "train", min_frames=26)
    with pytest.raises(UnusableClip, match="a/more-pictures: record 7 cannot be read"):
        source[1].frames[9:14]
    assert source[1].frames[16:30].shape == (14, 48, 96, 3)
    batches = take(make_training_iterator(source, Pairing("reference"), seed=0, batch_size=60), 2)
    assert sum(batch["skipped"].sum() for batch in batches) > 0


def test_records_of_another_order_are_noticed(one_shard):
    output, _ = one_shard
    source = TfdsSource(output, "train", min_frames=26)
    source._first_record[1] += 1
    with pytest.raises(UnusableClip, match=r"record 7 is of a/more-pictures, frame 8; expected frame 0"):
        source[1].frames[0:5]


def damage(kind, folder, path):
    index = folder / index_file("train")
    if kind == "missing shard":
        path.unlink()
    elif kind == "truncated shard":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "missing index":
        index.unlink()
    elif kind == "index of another build":
        index.write_text(index.read_text().replace('"record_frames": 8', '"record_frames": 9'))
    elif kind == "index of another version":
        index.write_text(index.read_text().replace('"format": 1', '"format": 2'))
    elif kind == "never finished":
        (folder / "dataset_info.json").unlink()


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing shard", "is missing, expected .* the data set is incomplete"),
        ("truncated shard", "the data set is incomplete"),
        ("missing index", "no index of clips"),
        ("index of another build", "does not belong to the records"),
        ("index of another version", "another format"),
        ("never finished", "no complete data set"),
    ],
)
def test_an_incomplete_data_set_is_one_clear_line(one_shard, kind, message):
    output, path = one_shard
    damage(kind, output / DATASET, path)
    with pytest.raises(UserError, match=message) as error:
        TfdsSource(output, "train", min_frames=26)
    assert "\n" not in str(error.value)


def test_a_split_that_is_not_there(one_shard):
    with pytest.raises(UserError, match="no split 'pretrain'; it has train"):
        TfdsSource(one_shard[0], "pretrain", min_frames=26)


def test_a_failed_build_leaves_nothing_and_goes_on(odd_clips, odd_output, tmp_path, monkeypatch):
    write, written = tfds_shards.write_shard, []

    def fail_at_the_second(shard):
        if len(written) == 1:
            shard.path.write_bytes(b"half a shard")
            raise UserError("disk full")
        written.append(shard.path.name)
        write(shard)

    monkeypatch.setattr(tfds_shards, "write_shard", fail_at_the_second)
    with pytest.raises(UserError, match="disk full"):
        build_lists(odd_clips, tmp_path, "train", shard_frames=100)
    assert not (tmp_path / DATASET).exists() and not list((tmp_path / "lip_sync_clips").iterdir())
    monkeypatch.setattr(tfds_shards, "write_shard", lambda shard: written.append(shard.path.name) or write(shard))
    (tmp_path / "lip_sync_clips/incomplete.ABC_1.0.0").mkdir()  # as of a build that was killed
    folder = build_lists(odd_clips, tmp_path, "train", shard_frames=100)
    assert written == ["train-00000", "train-00001", "train-00002"]  # each once
    assert sorted(os.listdir(tmp_path)) == [".lip_sync_clips.lock", "lip_sync_clips"]
    assert os.listdir(tmp_path / "lip_sync_clips") == ["1.0.0"]
    undisturbed = odd_output / DATASET
    assert sorted(os.listdir(folder)) == sorted(os.listdir(undisturbed))
    for file in folder.iterdir():
        assert file.read_bytes() == (undisturbed / file.name).read_bytes(), file.name


def test_a_finished_data_set_is_left_alone_and_another_refused(odd_clips, odd_output, monkeypatch):
    monkeypatch.setattr(tfds_shards, "write_shard", None)
    assert build_lists(odd_clips, odd_output, "train", shard_frames=100) == odd_output / DATASET
    with pytest.raises(UserError, match="holds other clips or settings"):
        build_lists(odd_clips, odd_output, "train", shard_frames=100, lower_half=True)


def test_two_builds_at_once_are_refused(odd_clips, tmp_path):
    description = Contents({"train": open_source("lrs2", str(odd_clips), "train", min_frames=0)}).description()
    with tfds_builder.Staging(tmp_path, description), pytest.raises(UserError, match="another process builds"):
        build_lists(odd_clips, tmp_path, "train")


def test_a_disk_that_is_full(odd_clips, tmp_path):
    shard = Contents({"train": open_source("lrs2", str(odd_clips), "train", min_frames=0)}).plan(tmp_path)[
        "train"
    ][0]
    shard.path.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*train-00000 \(.*No space left on device"):
        tfds_shards.write_shard(shard)
    assert not shard.report.exists()


def test_files_that_cannot_be_read_are_left_out_and_counted(odd_clips, tmp_path, monkeypatch):
    encoded = views.FrameFolder.encoded

    def unreadable(self, number):
        if self.name == "a/48":
            raise UnusableClip(self.name, "0.jpg cannot be read")
        return encoded(self, number)

    monkeypatch.setattr(views.FrameFolder, "encoded", unreadable)
    build_lists(odd_clips, tmp_path, "train")
    source = TfdsSource(tmp_path, "train", min_frames=26)
    assert source.skipped["where 0.jpg cannot be read"] == ["a/48"]
    assert source[0].name == "a/more-pictures" and source[0].frames[45:50].shape[0] == 5


@pytest.fixture
def own_flags(monkeypatch):
    """Flags that this test may define."""
    from absl import flags

    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(tfds_builder.app, "define_help_flags", lambda: None)
    for name in ("DEFINE_string", "DEFINE_list", "DEFINE_enum", "DEFINE_integer", "DEFINE_bool"):
        define = getattr(flags, name)
        monkeypatch.setattr(flags, name, lambda *a, define=define, **k: define(*a, flag_values=flags.FLAGS, **k))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--root=/nowhere"], "expected --root=ROOT --output=DIR"),
        (["--root=/nowhere", "--output={tmp}", "--colour=red"], "colour"),
        (["--root=/nowhere", "--output={tmp}"], "/nowhere: none of the lists"),
        (["--root=/nowhere", "--output={tmp}", "--lists=train"], "/nowhere: no such folder"),
        (["--root={root}", "--output={tmp}", "--lists=train", "--workers=0"], "--workers=0"),
        (["--root={root}", "--output={tmp}", "--lists=train", "--record_frames=0"], "1 or more frames per record"),
        (["--root={root}", "--output=gs://bucket/x", "--lists=train"], "expected a local folder"),
        (["--root={root}", "--output=/dev/null/x", "--lists=train"], "/dev/null"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, odd_clips, tmp_path, capsys, own_flags):
    command = [argument.format(root=odd_clips, tmp=tmp_path / "out") for argument in arguments]
    assert tfds_builder.run(["tfds_builder", *command]) == 1
    output = capsys.readouterr()
    error = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0] and output.out == ""
    assert not (tmp_path / "out" / DATASET).exists()


def test_an_interrupted_command_says_so_in_one_line(odd_clips, tmp_path, capsys, own_flags, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tfds_builder, "build", interrupt)
    assert (
        tfds_builder.run(["tfds_builder", f"--root={odd_clips}", f"--output={tmp_path}", "--lists=train"]) == 130
    )
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: interrupted; the same command goes on")


def test_names_that_are_no_splits(odd_clips):
    with pytest.raises(UserError, match="cannot name a split"):
        Contents({"my-list": None})


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
