"""Learning-rate schedules and the optimiser, out of the config."""

import jax.numpy as jnp
import optax


def schedule_factor(options, steps_per_epoch: int, total_steps: int):
    """step (counted from 0) → factor of the learning rate.

    "stepwise" is the published schedule: in epoch e = 1, 2, … e/warmup up to the end of the warm-up, then
    rate^⌊(e − warmup)/decay⌋. "cosine" warms up linearly by step and falls to 0 at the end.
    """

    def stepwise(step):
        epoch = step // steps_per_epoch + 1
        decayed = options.decay_rate ** jnp.floor((epoch - options.warmup_epochs) / options.decay_epochs)
        return jnp.where(epoch <= options.warmup_epochs, epoch / max(options.warmup_epochs, 1), decayed)

    def cosine(step):
        warmup = max(options.warmup_epochs * steps_per_epoch, 1)
        progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0, 1)
        return jnp.minimum((step + 1) / warmup, 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    def constant(step):
        return jnp.ones_like(step, jnp.float32)

    return {"stepwise": stepwise, "cosine": cosine, "constant": constant}[options.schedule]


def make_optimizer(options, factor) -> optax.GradientTransformation:
    """Adam over {"model": parameters, "loss": what is learned with the loss}, each with its learning rate.

    Weight decay (AdamW) and clipping act on the model alone.
    """
    clip = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
    adam = optax.adamw(lambda step: options.learning_rate * factor(step), weight_decay=options.weight_decay)
    loss = optax.adam(lambda step: options.loss_learning_rate * factor(step))
    return optax.partition({"model": optax.chain(*clip, adam), "loss": loss}, {"model": "model", "loss": "loss"})
