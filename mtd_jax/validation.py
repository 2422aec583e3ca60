"""Loss, accuracy and F1 of a model in training, over the validation list."""

import jax

from mtd_jax.data.draws import Shard
from mtd_jax.data.pipeline import evaluation_pairs
from mtd_jax.distributed.sharding import put_batch
from mtd_jax.errors import UserError


def validate_epoch(config, clips, eval_fn, state, mesh, shard: Shard) -> dict[str, float]:
    """Metrics over one fixed set of in-sync and out-of-sync pairs of the validation list, over all processes.

    Args: eval_fn: from `step.compile_steps`; shard: the part of every batch that this process reads.
    """
    batches = evaluation_pairs(
        clips,
        seed=config.seed,
        batch_size=config.val_batch_size,
        window_frames=config.model.window_frames,
        pairs_per_clip=config.val_pairs_per_clip,
        shard=shard,
    )
    sums: dict[str, float] = {}
    for batch in batches:
        del batch["skipped"]
        for name, value in jax.device_get(eval_fn(state, put_batch(batch, mesh))).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    if not sums["pairs"]:
        raise UserError(f"no pair of config.data.val_list={config.data.val_list} could be drawn; check the clips")
    metrics = {"val_loss": sums["loss"] / sums["pairs"], "val_accuracy": sums["right"] / sums["pairs"]}
    for name in ("f1", "f1_reference"):
        right, wrong, missed = (
            sums[f"{name}_{kind}"] for kind in ("true_positive", "false_positive", "false_negative")
        )
        metrics[f"val_{name}"] = 2 * right / max(2 * right + wrong + missed, 1.0)
    return metrics
