"""Which model is meant: the included one, a checkpoint directory, a .pth file, or the address of one."""

import os
from typing import Any

import jax

from mtd_jax import checkpoint
from mtd_jax.box import box_description, box_name, load_box
from mtd_jax.download import download, is_url
from mtd_jax.errors import UserError
from mtd_jax.network.model import SyncModel
from mtd_jax.released.convert import converted
from mtd_jax.released.pth import NotACheckpoint
from mtd_jax.storage import is_remote

Name = str | os.PathLike


def load_model(name: Name | None = None) -> SyncModel:
    """A model that is ready for use.

    Args:
      name: a checkpoint directory, converted or of a training run (whose best one is taken); the work directory of
        a run; a .pth file as released, or its http(s) address, converted into the user's cache folder at first
        use; None: the included model, which knows real faces and is small, see assets/MODEL_CARD.md.

    Raises:
      UserError: there is no such model, it is damaged, or it does not fit; the message names the entries.
    """
    return load_box() if name is None else checkpoint.load_model(local(name))


def describe(name: Name | None = None) -> dict[str, Any]:
    """What is known of a model: source, licence, step, … . Raises `UserError` as `load_model`."""
    return box_description() if name is None else checkpoint.load_description(local(name))


def local(name: Name) -> Name:
    """The checkpoint directory of a model that is not the included one. Raises `UserError` as `load_model`."""
    if not isinstance(name, str | os.PathLike) or not str(name):
        raise UserError(f"model: expected a checkpoint directory, a .pth file or its address, got {name!r}")
    if not is_url(name) and not is_remote(name) and not os.path.exists(name):
        raise UserError(f"{name}: no such {'file' if str(name).endswith('.pth') else 'file or directory'}")
    if (is_url(name) or os.path.isfile(name)) and jax.process_count() > 1:
        raise UserError(f"{name}: with several processes, convert it first (converters.torch_to_flax)")
    if is_url(name):
        file = download(str(name))
        try:
            return converted(file)
        except NotACheckpoint as error:  # perhaps a page of HTML, which the next attempt must not find again
            file.unlink(missing_ok=True)
            raise UserError(f"{name}: {str(error).removeprefix(f'{file}: ')}") from error
    return converted(name) if os.path.isfile(name) else name


def shown(name: Name | None) -> str:
    """How a verdict names its model."""
    return f"the included model ({box_name()})" if name is None else str(name)
