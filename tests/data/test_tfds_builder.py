"""Building ArrayRecord data sets: whole or not at all, and what the command says."""

import os

import pytest
import tensorflow_datasets as tfds

from mtd_jax.data import folder, tfds_builder
from mtd_jax.data.clip import UnusableClip
from mtd_jax.data.records import VERSION, RecordSource
from mtd_jax.data.tfds_builder import RecordWriter
from mtd_jax.errors import UserError
from tests.helpers.odd_clips import DATASET, build_lists


@pytest.fixture
def unreadable(monkeypatch):
    """Makes the frames of some clips unreadable."""
    names, encoded = set(), folder.FrameFolder.encoded

    def read(self, number):
        if self.name in names:
            raise UnusableClip(self.name, "0.jpg cannot be read")
        return encoded(self, number)

    monkeypatch.setattr(folder.FrameFolder, "encoded", read)
    return names


@pytest.mark.parametrize("error", [UserError("disk full"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing_to_read(odd_clips, tmp_path, monkeypatch, error):
    write, written = RecordWriter.write, []

    def fail_at_the_second(self, path, examples):
        if written:
            path.write_bytes(b"half a shard")
            raise error
        written.append(path)
        write(self, path, examples)

    monkeypatch.setattr(RecordWriter, "write", fail_at_the_second)
    with pytest.raises(type(error)):
        build_lists(odd_clips, tmp_path, "train", shard_frames=100)
    assert written and not list((tmp_path / "lip_sync_clips").iterdir())
    with pytest.raises(UserError, match="expected a complete data set"):
        RecordSource(tmp_path, "train", min_frames=6)


def test_a_build_that_was_killed_is_run_again(odd_clips, odd_output, tmp_path):
    (tmp_path / f"lip_sync_clips/incomplete.ABC_{VERSION}").mkdir(parents=True)
    folder = build_lists(odd_clips, tmp_path, "train", shard_frames=100)
    undisturbed = odd_output / DATASET
    assert sorted(os.listdir(folder)) == sorted(os.listdir(undisturbed))
    assert len(list(folder.glob("*.array_record-*"))) == 3
    assert (folder / "metadata.json").read_bytes() == (undisturbed / "metadata.json").read_bytes()


def test_a_finished_data_set_is_left_alone(odd_clips, odd_output, monkeypatch):
    monkeypatch.setattr(RecordWriter, "write", None)
    with pytest.raises(UserError, match="is there already; delete it"):
        build_lists(odd_clips, odd_output, "train", shard_frames=100)


def test_a_disk_that_is_full(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*full \(.*No space left on device"):
        RecordWriter(tfds.core.FileFormat.ARRAY_RECORD).write(tmp_path / "full", [(0, b"x" * 10)])


def test_files_that_cannot_be_read_are_skipped_and_counted(odd_clips, tmp_path, unreadable):
    unreadable.add("a/48")
    build_lists(odd_clips, tmp_path, "train", shard_frames=40)  # the file of a/48 stays empty
    source = RecordSource(tmp_path, "train", min_frames=26)
    assert source.skipped["where 0.jpg cannot be read"] == ["a/48"]
    assert source[0].name == "a/more-pictures" and source[0].frames[45:50].shape[0] == 5


def test_a_list_of_which_nothing_can_be_read(odd_clips, tmp_path, unreadable):
    unreadable |= {f"a/{name}" for name in ("48", "more-pictures", "more-sound", "short")}
    unreadable |= {"b/faces-of-another-size", "b/damaged"}
    with pytest.raises(UserError, match="none of the clips of train can be read: where 0.jpg cannot be read"):
        build_lists(odd_clips, tmp_path, "train")
    assert not (tmp_path / DATASET).exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--root=/nowhere"], "--output must have a value"),
        (["--root=/nowhere", "--output={tmp}", "--colour=red"], "colour"),
        (["--root=/nowhere", "--output={tmp}", "more"], "expected only flags"),
        (["--root=/nowhere", "--output={tmp}"], "/nowhere: none of the lists"),
        (["--root=/nowhere", "--output={tmp}", "--lists=train"], "/nowhere: no such folder"),
        (["--root={root}", "--output={tmp}", "--lists=train", "--workers=0"], "1 or more workers"),
        (["--root={root}", "--output={tmp}", "--lists=train", "--record_frames=0"], "1 or more frames per record"),
        (["--root={root}", "--output=gs://bucket/x", "--lists=train"], "expected a local folder"),
        (["--root={root}", "--output=/dev/null/x", "--lists=train"], "/dev/null"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message, odd_clips, tmp_path, capsys):
    command = [argument.format(root=odd_clips, tmp=tmp_path / "out") for argument in arguments]
    assert tfds_builder.main(["tfds_builder", *command]) == 1
    output = capsys.readouterr()
    error = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0] and output.out == ""
    assert not (tmp_path / "out" / DATASET).exists()


def test_help(capsys):
    assert tfds_builder.main(["tfds_builder", "--help"]) == 0
    assert "--[no]lower_half" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["my-list", "all"])
def test_names_that_are_no_splits(tmp_path, name):
    with pytest.raises(UserError, match="cannot name a split"):
        tfds_builder.build({name: None}, tmp_path)
