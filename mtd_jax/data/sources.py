"""Opens a source of clips in any format: for training, evaluation and the builder of data sets."""

import os

from mtd_jax.data.clip import ClipSource
from mtd_jax.errors import UserError

FORMATS = ("lrs2", "tfds", "acappella")
_LRS2_LISTS = ("pretrain", "train", "val", "test")


def open_source(data_format: str, root: str, list_name: str, *, min_frames: int) -> ClipSource:
    """The clips of one list.

    Args:
      data_format: "lrs2" (faces and lists in folders), "tfds" (written by `tfds_builder`) or "acappella".
      root: folder of the clips; of a tfds data set the --output it was built with.
      list_name: a list file of lrs2, a split of the others.
      min_frames: clips with fewer frames that have both image and audio are skipped.

    Raises:
      UserError: the clips are not there or none is usable.
    """
    if data_format != "tfds":
        _check_local(root)
    # Imported where needed: tensorflow_datasets takes half a second, in worker processes too.
    if data_format == "lrs2":
        from mtd_jax.data.lrs2 import Lrs2Source

        return Lrs2Source(root, list_name, min_frames=min_frames)
    if data_format == "tfds":
        from mtd_jax.data.records import RecordSource

        return RecordSource(root, list_name, min_frames=min_frames)
    if data_format == "acappella":
        from mtd_jax.data.acappella import AcappellaSource

        return AcappellaSource(root, list_name, min_frames=min_frames)
    raise UserError(f"data format {data_format!r}: expected one of {', '.join(FORMATS)}")


def list_names(data_format: str, root: str) -> list[str]:
    """The lists of a folder in the LRS2 or Acappella layout. Raises `UserError` if there is none."""
    _check_local(root)
    if data_format == "acappella":
        from mtd_jax.data.acappella import splits

        return splits(root)
    found = [name for name in _LRS2_LISTS if os.path.isfile(os.path.join(root, f"{name}.txt"))]
    if not found:
        raise UserError(f"{root}: none of the lists {', '.join(_LRS2_LISTS)} is there as a .txt file; name yours")
    return found


def _check_local(root: str) -> None:
    if "://" in root:
        raise UserError(
            f"{root}: folders of images and audio are read from local disks only; build ArrayRecords from them "
            "(python -m mtd_jax.data.tfds_builder) and name those with --config.data.format=tfds"
        )
