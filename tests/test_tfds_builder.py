"""Building ArrayRecord data sets: whole or not at all, one at a time, and what the command says."""

import os

import pytest

from mtd_jax.data import tfds_builder, tfds_shards, views
from mtd_jax.data.source import open_source
from mtd_jax.data.tfds_builder import Contents
from mtd_jax.data.tfds_source import TfdsSource
from mtd_jax.data.unusable import UnusableClip
from mtd_jax.errors import UserError
from tests.odd_clips import DATASET, build_lists


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
