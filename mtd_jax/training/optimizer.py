"""Learning-rate schedules and the optimiser, out of the config."""

import jax
import jax.numpy as jnp
import optax


def schedule_factor(options, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """step (counted from 0) → factor of the learning rate.

    "stepwise" is the published schedule: in epoch e = 1, 2, … e/warmup up to the end of the warm-up, then
    rate^⌊(e − warmup)/decay⌋. "cosine" warms up linearly by step and falls to 0 at the end.
    """

    def stepwise(step: jax.Array) -> jax.Array:  # by epoch, which no schedule of optax counts
        epoch = step // steps_per_epoch + 1
        decayed = options.decay_rate ** jnp.floor((epoch - options.warmup_epochs) / options.decay_epochs)
        return jnp.where(epoch <= options.warmup_epochs, epoch / max(options.warmup_epochs, 1), decayed)

    warmup = max(round(options.warmup_epochs * steps_per_epoch), 1)
    return {
        "stepwise": stepwise,
        "cosine": optax.warmup_cosine_decay_schedule(1 / warmup, 1.0, warmup - 1, max(total_steps, warmup)),
        "constant": optax.constant_schedule(1.0),
    }[options.schedule]


def make_optimizer(options, factor: optax.Schedule) -> optax.GradientTransformation:
    """Adam over {"model": parameters, "loss": what is learned with the loss}, each with its learning rate.

    Clipping acts on the model alone, and weight decay (AdamW) on its kernels: not on biases and normalisation.
    """
    adamw = optax.adamw(
        lambda step: options.learning_rate * factor(step),
        weight_decay=options.weight_decay,
        mask=lambda params: jax.tree.map(lambda array: array.ndim > 1, params),
    )
    clip = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
    loss = optax.adam(lambda step: options.loss_learning_rate * factor(step))
    return optax.partition({"model": optax.chain(*clip, adamw), "loss": loss}, {"model": "model", "loss": "loss"})
