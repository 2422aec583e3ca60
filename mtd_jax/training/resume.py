"""Saving a training run whole, and resuming it."""

import dataclasses
import json
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict

from mtd_jax.checkpoint import (
    check_format,
    checksum_of_all,
    describe,
    read_arrays,
    read_description,
    save_args,
    writing,
)
from mtd_jax.data import augment
from mtd_jax.distributed.sharding import place
from mtd_jax.errors import UserError
from mtd_jax.network.weights import check_cover, flat, model_arrays, nested
from mtd_jax.training.step import Run, TrainState

# What may differ between a run and its resumption: the end (but see below), the paths of the same teacher and the
# same clips (their checksums are compared), the clips' format, speed, logging, and what --mode=evaluate does.
_MAY_CHANGE = (
    "epochs",
    "teacher",
    "teacher_scores",
    "init",
    "data/root",
    "data/extra/root",
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


# Fields that earlier versions did not have, and what they did.
_LATER_FIELDS = {
    "teacher_scores": "",
    "init": "",
    "init_checksum": 0,
    "model": {"fusion": "transformers"},
    "loss": {"distill_weight": 1.0},
    "data": {
        "augment": json.loads(json.dumps(dataclasses.asdict(augment.OFF))),
        "clips_per_grid": 1,
        "extra": {"root": "", "train_list": "train", "share": 0.25, "alone_epochs": 0.0, "clips_checksum": 0},
    },
}


def with_fingerprints(config, clips, extra, teacher, initial=None, scores=None):
    """The config with checksums of the clips' names and of the teacher: a resumed run must have the same ones.

    Args:
      extra: the second source of clips, or None.
      initial: the model that the training starts from, or None.
      scores: stored ones of a teacher that is not there itself, or None.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.clips_checksum = clips_checksum(clips)
        config.data.extra.clips_checksum = clips_checksum(extra) if extra else 0
        config.teacher_checksum = checksum_of_all(model_arrays(teacher) if teacher else {})
        if scores is not None:
            config.teacher_checksum = scores.about["teacher_checksum"]
        config.init_checksum = checksum_of_all(model_arrays(initial)) if initial else 0
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
    with writing(manager.directory):
        manager.save(step, args=save_args(manager.directory, trees, description, metrics), metrics=metrics)


def restore_run(
    manager: ocp.CheckpointManager, run: Run, state: TrainState, config: ConfigDict
) -> tuple[TrainState, dict[str, Any]]:
    """The latest state of the run, on its mesh, whatever mesh wrote it; and its description as from `save_run`.

    Args:
      state: gives the structure.

    Raises:
      UserError: the checkpoint is damaged, or was made with another configuration; the message names the fields.
    """
    path = epath.Path(manager.directory) / str(manager.latest_step())
    description = read_description(path)
    check_format(description, path)
    _check_same_config(description["training"], json.loads(json.dumps(config.to_dict())), str(path))
    found = {}
    for item, tree in _trees(state).items():
        found[item] = read_arrays(path, item, description)
        check_cover(flat(tree), found[item], f"{path}/{item}")
    names = _named_leaves(state.optimizer)
    restored = TrainState(
        step=jnp.asarray(description["step"], jnp.int32),
        params={name: found["model"][name] for name in state.params},
        statistics={name: found["model"][name] for name in state.statistics},
        learned=nested(found["loss"]) if state.learned else {},
        optimizer=jax.tree.unflatten(
            jax.tree.structure(state.optimizer), [found["training"][name] for name in names]
        ),
    )
    return place(restored, run.mesh), description


def _check_same_config(before: dict, now: dict, where: str):
    later = traverse_util.flatten_dict(_LATER_FIELDS, sep="/")
    old, new = (later | traverse_util.flatten_dict(c, sep="/", keep_empty_nodes=True) for c in (before, now))
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
            "use the same one to resume, or another --workdir for a new run"
        )


def _trees(state: TrainState) -> dict:
    """What goes into the checkpoint's array items, by item."""
    trees = {"model": nested(state.params | state.statistics), "training": _named_leaves(state.optimizer)}
    return trees | ({"loss": state.learned} if state.learned else {})


def _named_leaves(tree) -> dict:
    """{path with only letters, digits and _: leaf}, in the tree's order."""
    return {
        re.sub(r"\W+", "_", jax.tree_util.keystr(path)).strip("_"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
