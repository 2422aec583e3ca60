"""A teacher's logits of every draw of a training, computed once and stored: --mode=store_scores.

Draws follow from the seed and their number alone, whatever alters the clips. So the students of one seed, with any
learning rate or batch size, can share them, and the teacher leaves their training steps.
"""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from mtd_jax.config import OF_LOGITS, Config, model_config, validate
from mtd_jax.data.pipeline import Shard
from mtd_jax.data.stored_scores import epoch_file, write_about, write_epoch
from mtd_jax.distributed.sharding import make_mesh, place, put_batch, replicate
from mtd_jax.errors import UserError
from mtd_jax.network.weights import bind, kernels_in, model_arrays
from mtd_jax.training.input import about_draws, batches_of, open_input, pairing_of
from mtd_jax.training.resume import with_fingerprints
from mtd_jax.training.step import score_grid, training_mel
from mtd_jax.training.train import load_teacher


def store_scores(config: Config, output: str | os.PathLike, report: Callable[[str], None] = print) -> None:
    """Stores the logits of `config.teacher` for all draws of the training that `config` describes.

    Epochs that are there already are left as they are, so a rerun resumes.

    Raises:
      UserError: no teacher, a config that cannot work, or the folder holds scores of other draws.
    """
    if not config.teacher:
        raise UserError("--mode=store_scores needs --config.teacher, whose scores are to be stored")
    if config.loss.name not in OF_LOGITS:
        raise UserError(f"config.loss.name: expected one of {', '.join(OF_LOGITS)}, got {config.loss.name}")
    if jax.process_count() > 1:
        raise UserError("--mode=store_scores runs in one process, with all of its devices")
    validate(config, jax.device_count())
    folder, given = Path(output), open_input(config)
    teacher = load_teacher(config)
    config = with_fingerprints(config, given.clips, given.more, teacher)
    batches = batches_of(config, given, Shard())
    windows = pairing_of(config).windows_per_example
    about = {"epochs": config.epochs, "windows": windows, "teacher_checksum": config.teacher_checksum}
    write_about(folder, about | {"draws": about_draws(config, batches)})
    mesh = make_mesh(config.mesh)
    arrays = place(kernels_in(teacher.config.compute_dtype, model_arrays(teacher)), mesh)
    student = model_config(config)

    @jax.jit
    def logits(arrays, batch):
        mel = training_mel(student, batch["audio"])
        scored = score_grid(bind(teacher.config, arrays), batch["frames"], mel)
        return jax.lax.with_sharding_constraint(scored.logits, replicate(mesh))

    stored = 0
    try:
        for epoch in range(config.epochs):
            if epoch_file(folder, epoch).exists():
                continue
            stored += 1
            batches.set_state(batches.get_state() | {"next_batch": epoch * given.steps_per_epoch})
            grids: list[np.ndarray] = []
            for _ in range(given.steps_per_epoch):
                grids.extend(np.asarray(logits(arrays, put_batch(next(batches), mesh))))
            write_epoch(folder, epoch, grids)
            report(f"epoch {epoch + 1}/{config.epochs}: {len(grids)} draws in {epoch_file(folder, epoch)}")
        if not stored:
            report(f"nothing to do: {folder} has the scores of all {config.epochs} epochs")
    finally:
        batches.close()
