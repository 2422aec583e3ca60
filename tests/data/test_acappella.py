"""Acappella: pictures and sound paired by natural order, its protocol, and the 25-frame configuration."""

import json
import logging
import os
import pickle
import shutil

import numpy as np
import pytest

from configs.acappella import get_config
from mtd_jax.checkpoint import load_model
from mtd_jax.config import validate
from mtd_jax.data.acappella import AcappellaSource
from mtd_jax.data.pipeline import make_training_iterator
from mtd_jax.data.sampling import Pairing
from mtd_jax.data.sources import list_names, open_source
from mtd_jax.data.tfds_builder import build
from mtd_jax.errors import UserError
from mtd_jax.evaluation.evaluate import evaluate_list
from mtd_jax.evaluation.protocol import acappella, lrs2, protocol_named
from mtd_jax.scoring import context_accuracy
from mtd_jax.training.train import train
from tests.helpers.batches import assert_same, take
from tests.helpers.clips import write_clip


def write_song(root, split, name, sound_name=None, **options):
    """A clip in Acappella's layout; returns its sound."""
    sound = write_clip(root / "jpgs" / split, name, **options)
    path = root / "splits_16k" / split / "audio" / f"{sound_name or name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / "jpgs" / split / name / "audio.wav", path)
    return sound


def test_clips_are_paired_in_natural_order(tmp_path, caplog):
    names = [f"solo/ann{a}/{clip}" for a in (2, 10) for clip in (1, 9, 20)]
    sounds = [write_song(tmp_path, "train", n, frames=26 + i, seed=i) for i, n in enumerate(names)]
    source = AcappellaSource(tmp_path, "train", min_frames=26)
    assert [source[i].name for i in range(len(source))] == names
    for i, sound in enumerate(sounds):
        assert len(source[i].frames) == 26 + i
        np.testing.assert_array_equal(source[i].waveform[: len(sound)], sound)
    assert not caplog.records and source.skipped == {}
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3].frames[4:9], source[3].frames[4:9])


@pytest.mark.parametrize("longer", ["song2", "song-live", "song (1)", "song live"])
def test_equal_names_pair_whatever_else_begins_like_them(longer, tmp_path, caplog):
    names = ["a/b/song", f"a/b/{longer}"]
    sounds = {name: write_song(tmp_path, "train", name, seed=seed) for seed, name in enumerate(names)}
    source = AcappellaSource(tmp_path, "train", min_frames=26)
    for clip in (source[0], source[1]):
        np.testing.assert_array_equal(clip.waveform[:100], sounds[clip.name][:100])
    assert not caplog.records


def test_only_the_order_pairs_names_that_differ(tmp_path, caplog):
    first = write_song(tmp_path, "train", "a/b/9", "x/y/2", seed=1)
    second = write_song(tmp_path, "train", "a/b/10", "x/y/11", seed=2)
    with caplog.at_level(logging.WARNING):
        source = AcappellaSource(tmp_path, "train", min_frames=26)
    for clip, sound in zip((source[0], source[1]), (first, second), strict=True):
        np.testing.assert_array_equal(clip.waveform[:100], sound[:100])
    assert "2 clips are paired with audio of other names (first: a/b/9 with x/y/2.wav)" in caplog.text


def test_frames_may_be_numbered_from_one(tmp_path):
    write_song(tmp_path, "train", "a/b/c")
    folder = tmp_path / "jpgs/train/a/b/c"
    before = AcappellaSource(tmp_path, "train", min_frames=26)[0].frames[10:15]
    for number in reversed(range(30)):
        os.rename(folder / f"{number}.jpg", folder / f"{number + 1}.jpg")
    clip = AcappellaSource(tmp_path, "train", min_frames=26)[0]
    assert len(clip.frames) == 30
    np.testing.assert_array_equal(clip.frames[10:15], before)


def test_pictures_and_sounds_that_are_not_as_many(tmp_path):
    for clip in ("1", "2", "3"):
        write_song(tmp_path, "test", f"a/b/{clip}")
    (tmp_path / "splits_16k/test/audio/a/b/2.wav").unlink()
    with pytest.raises(
        UserError, match=r"3 frame folders, but 2 audio files in .*audio; .*no audio named a/b/2"
    ) as e:
        AcappellaSource(tmp_path, "test", min_frames=26)
    assert "\n" not in str(e.value)
    shutil.rmtree(tmp_path / "jpgs/test/a/b/1")
    shutil.rmtree(tmp_path / "jpgs/test/a/b/2")
    with pytest.raises(UserError, match=r"1 frame folders, but 2 audio files .*no frames named a/b/1"):
        AcappellaSource(tmp_path, "test", min_frames=26)


def test_unusable_clips_are_counted_by_reason(tmp_path):
    for clip in ("good", "gap", "noise"):
        write_song(tmp_path, "train", f"a/b/{clip}")
    write_song(tmp_path, "train", "a/b/short", frames=20)
    write_song(tmp_path, "train", "a/b/slow", rate=8_000)
    (tmp_path / "jpgs/train/a/b/gap/12.jpg").unlink()
    (tmp_path / "splits_16k/train/audio/a/b/noise.wav").write_bytes(b"no sound")
    source = AcappellaSource(tmp_path, "train", min_frames=26)
    assert [source[i].name for i in range(len(source))] == ["a/b/good"]
    assert source.skipped == {
        "with a gap in the numbering of the frames": ["a/b/gap"],
        "with unreadable audio": ["a/b/noise"],
        "with fewer than 26 frames": ["a/b/short"],
        "where the audio has 8000 Hz in 1 channel(s), expected 16000 Hz mono": ["a/b/slow"],
    }


def test_missing_folders(tmp_path):
    with pytest.raises(UserError, match=r"jpgs/train: no such folder"):
        AcappellaSource(tmp_path, "train", min_frames=26)
    (tmp_path / "jpgs/train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"splits_16k/train/audio: no such folder"):
        AcappellaSource(tmp_path, "train", min_frames=26)
    (tmp_path / "splits_16k/train/audio").mkdir(parents=True)
    with pytest.raises(UserError, match="none of its 0 clips"):
        AcappellaSource(tmp_path, "train", min_frames=26)


def test_records_of_acappella_give_the_same_batches(tmp_path):
    for i, clip in enumerate(("9", "10", "11")):
        write_song(tmp_path / "files", "seen", f"a/b/{clip}", frames=30 + i, seed=i)
    assert list_names("acappella", str(tmp_path / "files")) == ["seen"]
    files = open_source("acappella", str(tmp_path / "files"), "seen", min_frames=26)
    build({"seen": files}, tmp_path, workers=1, progress=False)
    records = open_source("tfds", str(tmp_path), "seen", min_frames=26)
    pairing = Pairing("reference", window_frames=25)
    batches = [take(make_training_iterator(s, pairing, seed=0, batch_size=4), 3) for s in (files, records)]
    assert_same(*batches)


def test_contexts_of_the_protocols():
    assert (lrs2(5).contexts, lrs2(5).tolerances) == ((5, 7, 9, 11, 13, 15), (1,))
    assert (acappella(5).contexts, acappella(5).tolerances) == ((5, 10, 15, 20, 25), (1, 5))
    assert acappella(25).contexts == (25,)
    with pytest.raises(UserError, match="at most 25 frames"):
        acappella(26)
    with pytest.raises(UserError, match="one of lrs2, acappella, got lrs3"):
        protocol_named("lrs3", 5)


def test_tolerances():
    """Of four windows with offsets 0, −1, 3 and −6 at K = 5, half are within ±1 and three quarters within ±5."""
    scores = np.zeros((4, 31), np.float32)
    scores[range(4), 15 - np.array([0, -1, 3, -6])] = 1
    measured = acappella(5).measure(scores)
    assert measured.keys() == {"accuracy", "accuracy_within_5_frames", "offset_frames"}
    assert (measured["accuracy"]["5"], measured["accuracy_within_5_frames"]["5"]) == (0.5, 0.75)
    assert (
        list(measured["accuracy"]) == list(measured["accuracy_within_5_frames"]) == ["5", "10", "15", "20", "25"]
    )
    random = np.random.default_rng(0).normal(size=(40, 31))
    measured = acappella(5).measure(random)
    for k in (5, 10, 15, 20, 25):
        assert measured["accuracy"][str(k)] == context_accuracy(random, k)
        assert measured["accuracy_within_5_frames"][str(k)] == context_accuracy(random, k, tolerance=5)
    means = acappella(5).means(
        [measured, {key: dict.fromkeys(value, 1.0) for key, value in measured.items() if key != "offset_frames"}]
    )
    assert means["accuracy_within_5_frames"]["20"] == (1 + measured["accuracy_within_5_frames"]["20"]) / 2
    assert lrs2(5).measure(random).keys() == {"accuracy", "offset_frames"}


@pytest.fixture(scope="module")
def songs(corpus, tmp_path_factory):
    """The synthetic corpus in Acappella's layout."""
    root = tmp_path_factory.mktemp("songs")
    for split in ("train", "val", "test"):
        for line in (corpus / f"{split}.txt").read_text().splitlines():
            name = line.split()[0]
            shutil.copytree(corpus / name, root / "jpgs" / split / "solo" / name)
            sound = root / "splits_16k" / split / "audio" / "solo" / f"{name}.wav"
            sound.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(root / "jpgs" / split / "solo" / name / "audio.wav", sound)
    return root


def test_the_configuration_trains_and_evaluates(songs, tmp_path, capsys):
    config = get_config("tiny")
    config.model.widths, config.model.num_heads, config.model.num_layers = (4, 4, 8, 8, 8), 2, 1
    config.data.root, config.batch_size, config.val_batch_size, config.epochs = str(songs), 4, 2, 1
    assert train(config, tmp_path, report=lambda line: None)["steps"] == 2
    assert load_model(tmp_path).config.window_frames == 25
    evaluate_list(config, tmp_path, "test", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"] == "acappella" and len(result["clips"]) == 3
    assert result["accuracy"].keys() == result["accuracy_within_5_frames"].keys() == {"25"}
    assert result["accuracy"]["25"] <= result["accuracy_within_5_frames"]["25"]
    assert result["clips"][0]["windows"] == 15
    printed = capsys.readouterr().out
    assert "±1" in printed and "±5" in printed and "K25" in printed and "published" not in printed


def test_variants():
    for variant, loss in (("", "bce"), ("student", "mtd"), ("tiny", "bce")):
        config = get_config(variant)
        assert config.loss.name == loss and config.model.window_frames == 25
        config.data.root, config.teacher = "somewhere", "teacher" if loss == "mtd" else ""
        validate(config, num_devices=1)
    with pytest.raises(UserError, match="expected no variant, or one of student, tiny"):
        get_config("large")
