"""Saving a training run whole, and going on from it."""

import json
import re
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from mtd_jax import checksums
from mtd_jax.arrays import check_cover, model_arrays
from mtd_jax.checkpoint import check_format, describe
from mtd_jax.checkpoint_faults import restoring, writing
from mtd_jax.distributed.sharding import place
from mtd_jax.errors import UserError
from mtd_jax.step import Run, TrainState

# What may differ between a run and its resumption: the end (but see below), where the same teacher and the same
# clips lie (their checksums are compared) and in which form, how fast things go, and what --mode=evaluate does.
_MAY_CHANGE = (
    "epochs",
    "teacher",
    "data/root",
    "data/format",
    "data/workers",
    "mesh/data",
    "mesh/fsdp",
    "val_batch_size",
    "log_every",
    "checkpoint_every",
    "evaluation/protocol",
    "evaluation/reference_edges",
    "evaluation/compute_dtype",
)


def with_fingerprints(config, clips, teacher):
    """The config with checksums of the clips' names and of the teacher: a run goes on with the same ones."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.clips_checksum = clips_checksum(clips)
        config.teacher_checksum = checksums.checksum_of_all(model_arrays(teacher) if teacher else {})
    return config


def clips_checksum(clips) -> int:
    """Of the names of the clips of a source, in their order, and of what was done to their pixels."""
    return zlib.crc32((clips.encoding + "\n".join(clips[i].name for i in range(len(clips)))).encode())


def save_run(
    manager: ocp.CheckpointManager,
    run: Run,
    state: TrainState,
    config,
    data_state: dict,
    train_seconds: float,
    metrics: dict[str, float] | None,
):
    """Hands the run to orbax, which writes it in the background; a checkpoint appears whole or not at all.

    Args:
      data_state: of the training iterator.
      train_seconds: spent on the run so far, for the record.
      metrics: of the validation, if there was one after this step; they decide which checkpoint is the best.
    """
    step = int(state.step)
    trees = _trees(state)
    description = describe(run.model, step, f"training, loss {run.objective.name}", trees)
    description |= {"training": config.to_dict(), "data": data_state, "train_seconds": train_seconds}
    items = {item: ocp.args.StandardSave(tree) for item, tree in trees.items()}
    description |= {"checksum": _checksum(description)}
    items["config"] = ocp.args.JsonSave(json.loads(json.dumps(description)))
    with writing(manager):
        manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)


def restore_run(manager: ocp.CheckpointManager, state: TrainState, config) -> tuple[TrainState, dict]:
    """The latest state of the run, and its description as from `save_run`.

    Args: state: gives the structure, and each array's sharding, whatever mesh wrote the checkpoint.

    Raises:
      UserError: if the checkpoint was made with another configuration; the message names the fields.
    """
    step = manager.latest_step()
    where = f"{manager.directory}/{step}"
    with restoring(manager, where):
        return _restore(manager, step, where, state, config)


def _restore(manager, step: int, where: str, state: TrainState, config) -> tuple[TrainState, dict]:
    description = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore())).config
    check_format(description, where)
    if _checksum(description) != description["checksum"]:
        raise ValueError("its description is not as it was written")
    _check_same_config(description["training"], json.loads(json.dumps(config.to_dict())), where)
    targets = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _trees(state))
    found = manager.item_metadata(step)
    for item, target in targets.items():
        expected, there = (traverse_util.flatten_dict(tree, sep="/") for tree in (target, found[item].tree))
        check_cover(expected, there, f"{where}/{item}")
    items = {item: ocp.args.StandardRestore(target) for item, target in targets.items()}
    restored = manager.restore(step, args=ocp.args.Composite(**items))
    for item in items:
        checksums.check(restored[item], description["checksums"][item])
    model = traverse_util.flatten_dict(restored.model, sep="/")
    leaves = list(_named_leaves(state.optimizer))
    optimizer = jax.tree.unflatten(jax.tree.structure(state.optimizer), [restored.training[n] for n in leaves])
    restored_state = TrainState(
        step=place(np.int32(step), state.step.sharding.mesh),
        params={name: model[name] for name in state.params},
        statistics={name: model[name] for name in state.statistics},
        learned=restored.loss if state.learned else {},
        optimizer=optimizer,
    )
    return restored_state, description


def _checksum(description: dict) -> int:
    """Of all but the checksum itself, in JSON."""
    rest = {name: value for name, value in description.items() if name != "checksum"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _check_same_config(before: dict, now: dict, where: str):
    old, new = (traverse_util.flatten_dict(c, sep="/", keep_empty_nodes=True) for c in (before, now))
    # The cosine falls to 0 at the end: with another end the steps before would have had other learning rates.
    allowed = (
        [n for n in _MAY_CHANGE if n != "epochs"] if now["optimizer"]["schedule"] == "cosine" else _MAY_CHANGE
    )
    different = [
        f"{name.replace('/', '.')} (was {old.get(name, 'absent')}, is {new.get(name, 'absent')})"
        for name in sorted(old.keys() | new.keys())
        if name not in allowed and old.get(name) != new.get(name)
    ]
    if different:
        raise UserError(
            f"{where} was made with another configuration: {', '.join(different)}; "
            "use the same one to go on, or another --workdir to start afresh"
        )


def _trees(state: TrainState) -> dict:
    """What goes into the checkpoint's array items, by item."""
    trees = {"model": _nested(state.params | state.statistics), "training": _named_leaves(state.optimizer)}
    return trees | ({"loss": state.learned} if state.learned else {})


def _nested(arrays: dict) -> dict:
    return traverse_util.unflatten_dict(arrays, sep="/")


def _named_leaves(tree) -> dict:
    """{path with only letters, digits and _: leaf}, in the tree's order."""
    return {
        re.sub(r"\W+", "_", jax.tree_util.keystr(path)).strip("_"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
