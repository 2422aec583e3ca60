"""Checkpoint directories: what a model needs to be used, and what a training run needs to go on.

A checkpoint directory holds up to four items, written by orbax:
  config    JSON: format, model config, mel settings, step, versions, checksums of the arrays, how they came about
  model     parameters and BatchNorm statistics, float32, under the model's own names
  loss      what is learned with the loss: {"uncertainty": (13,)} or FitNet's maps (absent if nothing is)
  training  optimiser state (absent in converted models)
A training run keeps several of them in WORKDIR/checkpoints/STEP.
"""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers as policies

from mtd_jax import checksums
from mtd_jax.arrays import abstract_arrays, bind, check_cover, model_arrays
from mtd_jax.audio import MEL_SETTINGS
from mtd_jax.checkpoint_faults import damaged_metrics, readable
from mtd_jax.errors import UserError
from mtd_jax.model import ModelConfig, SyncModel

FORMAT = 3
BEST_METRIC = "val_loss"


# Each array is written by one of its replicas. Cut up among all of them, as orbax would, these models are
# thousands of slices of a few kB: on eight CPU devices the first checkpoint then took 4 s instead of 0.3.
ocp.type_handlers.register_type_handler(
    jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False), override=True
)


def describe(config: ModelConfig, step: int, source: str, trees: dict) -> dict:
    """The `config` item: everything that is needed to use the weights. Args: trees: the other items, by name."""
    return {
        "format": FORMAT,
        "model": dataclasses.asdict(config),
        "mel": MEL_SETTINGS,
        "step": int(step),
        "source": source,
        "checksums": {item: checksums.checksums(tree) for item, tree in trees.items()},
        "versions": {"jax": jax.__version__, "flax": flax.__version__, "orbax": ocp.__version__},
    }


def save_model(directory, model: SyncModel, *, step: int = 0, loss_weights=None, source: str = "saved model"):
    """Writes a checkpoint directory with config and weights; it appears whole or not at all.

    Args:
      loss_weights: (13,) learned uncertainties to keep beside the weights, or None.
      source: how the weights came about, kept in the checkpoint.
    """
    path = epath.Path(directory).absolute()
    if path.exists():
        raise UserError(f"{directory} exists already; name a new directory or remove it")
    trees = {"model": traverse_util.unflatten_dict(model_arrays(model), sep="/")}
    if loss_weights is not None:
        trees["loss"] = {"uncertainty": jnp.asarray(loss_weights, jnp.float32)}
    items = {item: ocp.args.StandardSave(tree) for item, tree in trees.items()}
    items["config"] = ocp.args.JsonSave(describe(model.config, step, source, trees))
    with _checkpointer() as checkpointer:
        checkpointer.save(path, ocp.args.Composite(**items))


def load_model(directory) -> SyncModel:
    """Loads a converted model, one checkpoint of a training run, or the best one of a run's work directory.

    Raises:
      UserError: if there is no checkpoint, or it does not fit; the message names the entries.
    """
    path = find_checkpoint(directory)
    config = model_config(path)
    return model_from_arrays(config, restore_arrays(path, "model"), str(directory))


def model_from_arrays(config: ModelConfig, arrays: dict, source: str) -> SyncModel:
    """Builds a model around given arrays (flat names, float32); UserError if they do not cover it exactly."""
    check_cover(abstract_arrays(config), arrays, source)
    return bind(config, {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()})


def load_loss_weights(directory) -> np.ndarray | None:
    """The (13,) learned uncertainties of a checkpoint, or None where it has none."""
    path = find_checkpoint(directory)
    if not (path / "loss").exists():
        return None
    loss = restore_arrays(path, "loss")
    return np.asarray(loss["uncertainty"]) if "uncertainty" in loss else None


def load_description(directory) -> dict:
    """The `config` item of a checkpoint, see `describe`."""
    path = find_checkpoint(directory)
    with readable(path, "config"), _checkpointer() as checkpointer:
        return checkpointer.restore(path, ocp.args.Composite(config=ocp.args.JsonRestore())).config


def model_config(directory) -> ModelConfig:
    """The model config stored in a checkpoint; UserError if this version cannot use it."""
    description = load_description(directory)
    check_format(description, directory)
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    if fields != description["model"].keys():
        different = sorted(fields ^ description["model"].keys())
        raise UserError(f"{directory}: its model config and this version differ in {', '.join(different)}")
    return ModelConfig(**description["model"])


def check_format(description: dict, where):
    """Raises a `UserError` if this version cannot use a checkpoint. Args: where: it lies, for people."""
    if description["format"] != FORMAT or description["mel"] != MEL_SETTINGS:
        raise UserError(
            f"{where}: expected checkpoint format {FORMAT} with mel settings {MEL_SETTINGS}, got format "
            f"{description['format']} with {description['mel']}; convert or train it again with this version"
        )


def find_checkpoint(directory) -> epath.Path:
    """The directory that holds the items: `directory` itself, or the best checkpoint of a training run in it."""
    path = epath.Path(directory).absolute()
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{directory}: expected a checkpoint directory, got a file; convert it with converters.torch_to_flax"
        )
    if (path / "config").exists():
        return path
    for run in (path / "checkpoints", path):
        if run.exists() and any(child.name.isdigit() for child in run.iterdir()):
            with open_manager(run, read_only=True) as manager:
                step = manager.best_step()
                return run / str(manager.latest_step() if step is None else step)
    raise UserError(
        f"{directory}: expected a checkpoint directory, found none; convert one with "
        "converters.torch_to_flax or train one with --mode=train"
    )


def open_manager(directory, *, read_only=False, best_and_last=1) -> ocp.CheckpointManager:
    """The checkpoints of one run: the last one and the one with the lowest validation loss are kept."""
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(best_and_last),
            policies.BestN(
                get_metric_fn=lambda m: m[BEST_METRIC],
                reverse=True,
                n=best_and_last,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=None if read_only else keep,
        best_fn=lambda m: m[BEST_METRIC],
        best_mode="min",
        read_only=read_only,
    )
    directory = epath.Path(directory).absolute()
    try:
        return ocp.CheckpointManager(directory, options=options, item_handlers=_handlers())
    except ValueError as error:
        raise UserError(damaged_metrics(directory) or f"{directory}: cannot be read ({error})") from error


def restore_arrays(path, item: str) -> dict[str, jax.Array]:
    """Reads one array item as it is, on a device of this process whatever machine wrote it; flat names."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    expected = load_description(path)["checksums"]
    with readable(path, item), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        found = reader.metadata(path / item).item_metadata.tree
        target = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding), found)
        tree = reader.restore(path / item, args=ocp.args.StandardRestore(target))
        checksums.check(tree, expected[item])
    return traverse_util.flatten_dict(tree, sep="/")


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers()))


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    arrays = {item: ocp.StandardCheckpointHandler() for item in ("model", "loss", "training")}
    return {"config": ocp.JsonCheckpointHandler(), **arrays}
