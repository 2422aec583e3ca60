"""Builds a TensorFlow Datasets data set of ArrayRecords from clips on disk; works without TensorFlow.

    python -m mtd_jax.data.tfds_builder --root=ROOT --output=DIR [--lists=train,val] [--workers=N] [--lower_half]

`DIR/lip_sync_clips/1.0.0` appears when it is complete; train from it with `--config.data.format=tfds
--config.data.root=DIR`. JPEGs are kept byte for byte. With `--lower_half` only the half that the networks see is
kept, decoded, cut and encoded again at quality 95: smaller and quicker to decode, but no longer the same pixels.
An interrupted build goes on from its last finished shard when the command is run again. Clips are recognised by
their names and lengths: after changing pictures in place, delete the output first.
"""

import dataclasses
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import app, flags, logging

from mtd_jax.data.records import RECORD_FRAMES, VERSION, ClipIndex, features, index_file
from mtd_jax.data.source import FORMATS, list_names, open_source
from mtd_jax.data.staging import DESCRIPTION, Staging
from mtd_jax.data.tfds_shards import Shard, plan, write_shards
from mtd_jax.errors import UserError, exit_at_once_on_sigterm
from mtd_jax.parallel import usable_cores

SHARD_FRAMES = 25_000  # 1000 s: 100 MB of 96×96 faces with their sound
_FILE_FORMAT = "array_record"


@dataclasses.dataclass(frozen=True)
class Contents:
    """What goes into a data set.

    Attributes:
      sources: clips by split, from `open_source` with min_frames=0.
      record_frames: frames per record; a number beyond the longest clip makes one record of each.
      shard_frames: frames per file, at most, if it has several clips.
      lower_half: see the module's docstring.
    """

    sources: dict[str, Any]
    record_frames: int = RECORD_FRAMES
    shard_frames: int = SHARD_FRAMES
    lower_half: bool = False

    def __post_init__(self):
        for split in self.sources:
            if not re.fullmatch(r"[A-Za-z]\w*", split) or split == "all":
                raise UserError(
                    f"list {split!r} cannot name a split; expected letters, digits and _, and not 'all'"
                )
        if self.record_frames < 1 or self.shard_frames < 1 or not self.sources:
            raise UserError("expected at least one list, and 1 or more frames per record and per shard")

    def plan(self, stage: Path) -> dict[str, list[Shard]]:
        """The shards of every split."""
        options = {"record_frames": self.record_frames, "lower_half": self.lower_half}
        return {
            split: plan(source, stage, split, shard_frames=self.shard_frames, **options)
            for split, source in self.sources.items()
        }

    def description(self) -> dict:
        """JSON by which a later call finds out whether a build is of the same clips."""
        splits = {
            split: {
                "list": source.list_path,
                "skipped": source.skipped,
                "clips": [
                    [c.name, len(c.frames), len(c.waveform)] for c in map(source.__getitem__, range(len(source)))
                ],
            }
            for split, source in self.sources.items()
        }
        settings = {name: getattr(self, name) for name in ("record_frames", "shard_frames", "lower_half")}
        return settings | {"version": VERSION, "splits": splits}


class LipSyncClips(tfds.core.DatasetBuilder):
    """Clips of talking faces, a split per list. Read with `as_data_source`; `as_dataset` needs TensorFlow."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, data_dir=None, contents=None, stage=None, workers=1, progress=True):
        """All but `data_dir` is for `download_and_prepare`, which `build` calls."""
        super().__init__(data_dir=data_dir)
        self.info.set_file_format(_FILE_FORMAT)
        self._contents, self._stage, self._workers, self._progress = contents, stage, workers, progress

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Talking faces, 25 frames per second, with their sound, for audio-visual synchronisation.",
            features=features(),
            disable_shuffling=True,  # training draws at random; clips keep the order of their list
        )

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        del dl_manager, download_config  # nothing to download
        shards = self._contents.plan(self._stage)
        reports = iter(
            write_shards([s for group in shards.values() for s in group], self._workers, self._progress)
        )
        splits = [self._finish(split, [(s, next(reports)) for s in group]) for split, group in shards.items()]
        shutil.copy(self._stage / DESCRIPTION, self.data_dir)
        self.info.set_splits(tfds.core.SplitDict(splits))

    def _finish(self, split: str, written: list[tuple[Shard, dict]]) -> tfds.core.SplitInfo:
        """Moves the shards of a split into the data set's folder and writes its index."""
        skipped = {reason: list(names) for reason, names in self._contents.sources[split].skipped.items()}
        for name, reason in (entry for _, report in written for entry in report["skipped"]):
            skipped.setdefault(reason, []).append(name)
        filled = [(shard, report) for shard, report in written if report["records"]]
        if not filled:
            raise UserError(f"none of the clips of {split} can be read: {'; '.join(sorted(skipped))}")
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.data_dir, dataset_name=self.name, split=split, filetype_suffix=_FILE_FORMAT
        )
        for number, (shard, _) in enumerate(filled):
            os.replace(shard.path, template.sharded_filepath(shard_index=number, num_shards=len(filled)))
        index = ClipIndex.of(
            [clip for _, report in filled for clip in report["clips"]],
            skipped=skipped,
            record_frames=self._contents.record_frames,
            lower_half=self._contents.lower_half,
            shard_bytes=[report["bytes"] for _, report in filled],
        )
        Path(self.data_dir, index_file(split)).write_text(index.to_json())
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[report["records"] for _, report in filled],
            num_bytes=sum(index.shard_bytes),
            filename_template=template,
        )

    def _log_download_bytes(self) -> None:
        """Says nothing on stdout about a download, as there is none."""

    def _log_download_done(self) -> None:
        """Likewise."""

    def _as_dataset(self, *args, **kwargs):
        raise NotImplementedError("ArrayRecords are read with as_data_source")


def build(
    contents: Contents, output: str | os.PathLike, *, workers: int | None = None, progress: bool = True
) -> Path:
    """Writes a data set; it appears when it is complete.

    Args:
      contents: what goes into it.
      output: folder, new or with other data sets. A complete data set of the same contents is left as it is.
      workers: processes; None = one per CPU core.
      progress: show a progress bar on stderr.

    Returns:
      `output`/lip_sync_clips/VERSION.

    Raises:
      UserError: another data set there, another build at work, a file that cannot be read or written.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers}: expected 1 or more")
    if "://" in str(output):
        raise UserError(f"{output}: expected a local folder; copy the data set to its place when it is complete")
    try:
        with Staging(Path(output), contents.description()) as stage:
            if not stage.is_complete:
                builder = LipSyncClips(
                    data_dir=output, contents=contents, stage=stage.folder,
                    workers=workers or usable_cores(), progress=progress,
                )  # fmt: skip
                builder.download_and_prepare(
                    download_dir=stage.folder,  # tfds makes it, though there is nothing to download
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                    file_format=_FILE_FORMAT,
                )
            return stage.target
    except OSError as error:
        raise UserError(f"cannot write the data set to {output} ({error.strerror or error})") from error


def run(argv) -> int:
    """The command; a user's mistake becomes one line on stderr and exit code 1."""
    root = flags.DEFINE_string("root", None, "Folder of the clips.")
    output = flags.DEFINE_string("output", None, "Folder for the data set.")
    lists = flags.DEFINE_list("lists", None, "Lists (Acappella: splits) to take. [all that are there]")
    layout = flags.DEFINE_enum("format", "lrs2", [f for f in FORMATS if f != "tfds"], "Layout of --root.")
    workers = flags.DEFINE_integer("workers", None, "Processes that write. [one per CPU core]")
    lower_half = flags.DEFINE_bool("lower_half", False, "Keep only lower halves of faces, encoded again.")
    record_frames = flags.DEFINE_integer("record_frames", RECORD_FRAMES, "Frames per record.")
    app.define_help_flags()
    try:
        rest = flags.FLAGS(argv)[1:]
        if rest or not root.value or not output.value:
            raise UserError(
                f"expected --root=ROOT --output=DIR and other flags, got {' '.join(argv[1:]) or 'none'}"
            )
        logging.set_verbosity(logging.WARNING)
        given = [name.removesuffix(".txt") for name in lists.value or ()]
        names = given or list_names(layout.value, root.value)
        sources = {name: open_source(layout.value, root.value, name, min_frames=0) for name in names}
        contents = Contents(sources, record_frames=record_frames.value, lower_half=lower_half.value)
        target = build(contents, output.value, workers=workers.value)
    except (UserError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from the last finished shard", file=sys.stderr)
        return 130
    for split in sources:
        index = ClipIndex.read(target, split)
        left_out = sum(len(names) for names in index.skipped.values())
        print(f"{split}: {len(index.names)} clips, {left_out} left out, {sum(index.shard_bytes) / 2**20:.1f} MiB")
    print(f"data set: {target}; use it with --config.data.format=tfds --config.data.root={output.value}")
    return 0


if __name__ == "__main__":
    exit_at_once_on_sigterm()
    sys.exit(run(sys.argv))
