"""Checkpoint directories: what a model needs to be used, and what a training run needs to resume.

A checkpoint directory holds up to four items, written by orbax:
  config    JSON: format, model config, mel settings, step, versions, checksums of the arrays, their origin
  model     parameters and BatchNorm statistics, float32, under the model's own names
  loss      what is learned with the loss: {"uncertainty": (13,)} or FitNet's maps (absent if nothing is)
  training  optimiser state (absent in converted models)
A training run keeps several of them in WORKDIR/checkpoints/STEP.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax import lax
from orbax.checkpoint import checkpoint_managers as policies

from mtd_jax.errors import UserError, one_line
from mtd_jax.network.mel import MEL_SETTINGS
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.network.weights import abstract_arrays, bind, check_cover, flat, model_arrays, nested
from mtd_jax.storage import is_remote, path_of

FORMAT = 3
_LATER_FIELDS = {"fusion"}  # of `ModelConfig`, that checkpoints of earlier versions lack: they mean the default
BEST_METRIC = "val_loss"
_ARRAY_ITEMS = ("model", "loss", "training")


class ChecksumError(ValueError):
    """Arrays that were read are not the arrays that were written."""


def describe(
    config: ModelConfig, step: int, source: str, trees: Mapping[str, Any], licence: str = ""
) -> dict[str, Any]:
    """The `config` item: everything that is needed to use the weights. Args: trees: the other items, by name."""
    return {
        "format": FORMAT,
        "model": dataclasses.asdict(config),
        "mel": MEL_SETTINGS,
        "step": int(step),
        "source": source,
        "licence": licence,
        "checksums": {item: checksums(flat(tree)) for item, tree in trees.items()},
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "orbax": ocp.__version__},
    }


def save_model(
    directory: str | os.PathLike,
    model: SyncModel,
    *,
    step: int = 0,
    loss_weights: jax.typing.ArrayLike | None = None,
    source: str = "saved model",
    licence: str = "",
) -> None:
    """Writes a checkpoint directory with config and weights; it appears whole or not at all.

    Args:
      loss_weights: (13,) learned uncertainties to keep with the weights, or None.
      source: how the weights were made, kept in the checkpoint.
      licence: whose terms apply to them, kept as well.

    Raises:
      UserError: the directory exists already, or cannot be written.
    """
    path = path_of(directory).absolute()
    if path.exists():
        raise UserError(f"{directory} exists already; name a new directory or remove it")
    trees = {"model": nested(model_arrays(model))}
    if loss_weights is not None:
        trees["loss"] = {"uncertainty": jnp.asarray(loss_weights, jnp.float32)}
    with writing(path), _checkpointer() as checkpointer:
        checkpointer.save(path, save_args(path, trees, describe(model.config, step, source, trees, licence)))


def load_model(directory: str | os.PathLike) -> SyncModel:
    """Loads a converted model, one checkpoint of a training run, or the best one of a run's work directory.

    Raises:
      UserError: there is no checkpoint, it is damaged, or it does not fit; the message names the entries.
    """
    path = find_checkpoint(directory)
    config = model_config(path)
    return model_from_arrays(config, restore_arrays(path, "model"), str(directory))


def model_from_arrays(config: ModelConfig, arrays: Mapping[str, Any], source: str) -> SyncModel:
    """Builds a model around given arrays (flat names, float32); UserError if they do not cover it exactly."""
    check_cover(abstract_arrays(config), arrays, source)
    return bind(config, {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()})


def load_loss_weights(directory: str | os.PathLike) -> np.ndarray | None:
    """The (13,) learned uncertainties of a checkpoint, or None where it has none."""
    path = find_checkpoint(directory)
    if not (path / "loss").exists():
        return None
    loss = restore_arrays(path, "loss")
    return loss.get("uncertainty")


def load_description(directory: str | os.PathLike) -> dict[str, Any]:
    """The `config` item of a checkpoint, see `describe`."""
    return read_description(find_checkpoint(directory))


def restore_arrays(directory: str | os.PathLike, item: str) -> dict[str, np.ndarray]:
    """Reads one array item of a checkpoint and checks its checksums; flat names. Raises as `read_arrays` does."""
    path = find_checkpoint(directory)
    return read_arrays(path, item, read_description(path))


def model_config(directory: str | os.PathLike) -> ModelConfig:
    """The model config stored in a checkpoint; UserError if this version cannot use it."""
    return usable_config(load_description(directory), directory)


def usable_config(description: Mapping[str, Any], where: str | os.PathLike) -> ModelConfig:
    """The model config in a description; UserError if this version cannot use it. Args: where: for the message."""
    check_format(description, where)
    fields, described = {field.name for field in dataclasses.fields(ModelConfig)}, description["model"].keys()
    different = sorted((fields - _LATER_FIELDS) ^ (described - _LATER_FIELDS))
    if different:
        raise UserError(f"{where}: its model config and this version differ in {', '.join(different)}")
    return ModelConfig(**description["model"])


def check_format(description: Mapping[str, Any], where: str | os.PathLike) -> None:
    """Raises a `UserError` if this version cannot use a checkpoint. Args: where: its path, for the message."""
    if description["format"] != FORMAT or description["mel"] != MEL_SETTINGS:
        raise UserError(
            f"{where}: expected checkpoint format {FORMAT} with mel settings {MEL_SETTINGS}, got format "
            f"{description['format']} with {description['mel']}; convert or train it again with this version"
        )


def find_checkpoint(directory: str | os.PathLike) -> epath.Path:
    """The directory that holds the items: `directory` itself, or the best checkpoint of a training run in it."""
    path = path_of(directory).absolute()
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{directory}: expected a checkpoint directory, got a file; convert it with converters.torch_to_flax"
        )
    if (path / "config").exists():
        return path
    for run in (path / "checkpoints", path):
        steps = [int(child.name) for child in run.iterdir() if child.name.isdigit()] if run.exists() else []
        if steps:
            losses = {step: _validation_loss(run / str(step)) for step in steps}
            validated = [(loss, -step) for step, loss in losses.items() if loss is not None]
            return run / str(-min(validated)[1] if validated else max(steps))
    raise UserError(
        f"{directory}: expected a checkpoint directory, found none; convert one with "
        "converters.torch_to_flax or train one with --mode=train"
    )


def _validation_loss(path: epath.Path) -> float | None:
    """Of one checkpoint of a run; None if no validation took place after its step."""
    file = path / "metrics" / "metrics"
    if not file.exists():
        return None
    with _decoding(path, "metrics"):
        return json.loads(file.read_text())[BEST_METRIC]


def open_manager(directory: str | os.PathLike, *, best_and_last: int = 1) -> ocp.CheckpointManager:
    """The checkpoints of one run: the last one and the one with the lowest validation loss are kept."""
    # No best_fn: with one, orbax would warn of every checkpoint that is saved between two validations.
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[BEST_METRIC],
        reverse=True,
        n=best_and_last,
        keep_checkpoints_without_metrics=False,
    )
    keep = policies.AnyPreservationPolicy([policies.LatestN(best_and_last), best])
    options = ocp.CheckpointManagerOptions(preservation_policy=keep)
    directory = path_of(directory).absolute()
    try:
        return ocp.CheckpointManager(directory, options=options, item_handlers=_handlers())
    except json.JSONDecodeError:  # orbax reads the metrics of every step, and does not say whose are damaged
        for file in sorted(directory.glob("*/metrics/metrics")):
            _validation_loss(file.parent.parent)
        raise


def save_args(
    directory: epath.Path,
    trees: Mapping[str, Any],
    description: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
) -> ocp.args.Composite:
    """The items of a checkpoint, as orbax takes them; `UserError` if they would not fit on the disk.

    Args:
      directory: where they will be written.
      trees: nested dictionaries of arrays, by item.
      description: as from `describe`, and anything else that JSON can hold.
      metrics: of the validation after this step, if there was one.
    """
    _check_room(directory, sum(leaf.nbytes for leaf in jax.tree.leaves(dict(trees))))
    items: dict[str, Any] = {item: ocp.args.PyTreeSave(tree) for item, tree in trees.items()}
    items["config"] = ocp.args.JsonSave(json.loads(json.dumps(description)))
    if metrics is not None:
        items["metrics"] = ocp.args.JsonSave(metrics)
    return ocp.args.Composite(**items)


@contextlib.contextmanager
def writing(directory: str | os.PathLike) -> Iterator[None]:
    """Turns a failed write of a checkpoint, now or in the background, into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: TensorStore's for everything a disk can refuse
        raise UserError(
            f"cannot write a checkpoint to {directory} ({one_line(error, limit=500)}); "
            "earlier checkpoints are intact"
        ) from error


def read_description(path: epath.Path) -> dict[str, Any]:
    """The `config` item of the checkpoint in this very directory.

    Raises:
      UserError: it is missing or damaged.
    """
    with _decoding(path, "config"), _checkpointer() as checkpointer:
        return checkpointer.restore(path, ocp.args.Composite(config=ocp.args.JsonRestore())).config


def read_arrays(path: epath.Path, item: str, description: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """One array item of the checkpoint in this very directory, whatever mesh wrote it; flat names.

    Args:
      description: of this checkpoint; it has the names of the arrays, and their checksums.

    Raises:
      UserError: the item is missing or damaged.
    """
    expected = description["checksums"]
    if item not in expected:
        raise UserError(f"{path}: expected an item {item!r}, found {', '.join(sorted(expected))}")
    names = nested(dict.fromkeys(expected[item], 0))
    # As NumPy arrays: reading into JAX arrays, orbax hides what went wrong in a bare Exception.
    numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
    request = ocp.args.Composite(**{item: ocp.args.PyTreeRestore(names, restore_args=numpy)})
    with _decoding(path, item), _checkpointer() as checkpointer:
        arrays = flat(checkpointer.restore(path, request)[item])
        check_checksums(arrays, expected[item])
    return arrays


def checksums(arrays: Mapping[str, jax.Array | np.ndarray]) -> dict[str, int]:
    """{name: sum of the array's 32-bit words, each times its own odd number, modulo 2³²}.

    Orbax keeps no checksums, and a weight with a flipped bit is still a number. These are the same for every
    sharding and number of processes, all of which must call this. Every changed word changes the sum, and so do
    two words that are swapped (unless they differ by 2³¹).

    Args:
      arrays: with entries of four bytes.
    """
    split = {n: a for n, a in arrays.items() if isinstance(a, jax.Array) and not a.is_fully_replicated}
    sums = jax.device_get(_checksums_on_devices(split)) if split else {}
    for name in arrays.keys() - split.keys():  # on the host, where nothing is compiled
        array = arrays[name]
        whole = array.addressable_data(0) if isinstance(array, jax.Array) else array
        sums[name] = _weighted_sum(np.asarray(whole).view(np.uint32), np)
    return {name: int(sums[name]) for name in arrays}


def checksum_of_all(arrays: Mapping[str, jax.Array | np.ndarray]) -> int:
    """One number for a model's arrays: shows whether two models are the same."""
    return zlib.crc32(repr(sorted(checksums(arrays).items())).encode())


def check_checksums(arrays: Mapping[str, jax.Array | np.ndarray], expected: Mapping[str, int]) -> None:
    """Raises a `ChecksumError` that names the first array whose checksum is not the expected one."""
    found = checksums(arrays)
    wrong = sorted(name for name in expected if found[name] != expected[name])
    if wrong:
        raise ChecksumError(f"{len(wrong)} arrays are not as they were written, first {wrong[0]}")


@jax.jit
def _checksums_on_devices(arrays):
    return {name: _weighted_sum(lax.bitcast_convert_type(x, jnp.uint32), jnp) for name, x in arrays.items()}


def _weighted_sum(words, xp):
    numbers = xp.arange(words.size, dtype=xp.uint32).reshape(words.shape)
    return (words * (2 * numbers + 1)).sum(dtype=xp.uint32)


@contextlib.contextmanager
def _decoding(path: epath.Path, item: str) -> Iterator[None]:
    """Turns a failed read of an item into a `UserError`, which says "damaged" only if the bytes prove it.

    Proof is a checksum that does not match, or data that do not decode. TensorStore raises ValueError for those,
    but also for a read that was refused or broken off, so its error counts only if the system can read all files.

    Raises:
      OSError: the system cannot read a file.
    """
    if not (path / item).exists():
        raise UserError(f"{path}: incomplete, its item {item!r} is missing; copy the checkpoint again")
    try:
        yield
    except (ChecksumError, json.JSONDecodeError) as error:
        raise UserError(_damaged(path, item, error)) from error
    except UserError:
        raise
    except ValueError as error:
        if is_remote(path):
            raise UserError(f"{path}: cannot read its item {item!r} ({one_line(error)})") from error
        for file in pathlib.Path(path / item).rglob("*"):
            if file.is_file():
                file.read_bytes()
        raise UserError(_damaged(path, item, error)) from error


def _damaged(path: epath.Path, item: str, error: Exception) -> str:
    advice = "copy or convert the checkpoint again"
    if path.name.isdigit():  # one of a training run
        others = [int(other.name) for other in path.parent.iterdir() if other.name.isdigit() and other != path]
        rest = f"resume from {path.parent / str(max(others))}" if others else "start the run again"
        advice = f"remove this folder to {rest}"
    return f"{path}: damaged, its item {item!r} does not decode ({one_line(error)}); {advice}"


def _check_room(directory: epath.Path, size: int) -> None:
    """Before anything is written: when a disk fills up during a write, orbax logs pages of tracebacks."""
    if is_remote(directory):
        return
    existing = next(folder for folder in (directory, *directory.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise UserError(
            f"cannot write a checkpoint to {directory}: it takes up to {size / 2**20:.1f} MiB, "
            f"{free / 2**20:.1f} MiB are free; make room (earlier checkpoints are intact)"
        )


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers()))  # pyright: ignore[reportArgumentType]


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    # Each array is written by one of its replicas. Split among all of them, as orbax would, these models are
    # thousands of slices of a few kB: on eight CPU devices the first checkpoint then took 4 s instead of 0.3.
    types = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False)),
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
    )
    arrays = {item: ocp.PyTreeCheckpointHandler(type_handler_registry=types) for item in _ARRAY_ITEMS}
    return {"config": ocp.JsonCheckpointHandler(), **arrays}
