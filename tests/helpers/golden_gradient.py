"""The gradient of the MTD loss on the reference batch at T = 1, computed in float64.

Where rounding differs, some ReLUs flip: two float32 gradients, one as right as the other, are 1 to 2 % apart.

Usage: python -m tests.helpers.golden_gradient FILE. Writes {flax name: array}.
"""

import dataclasses
import sys

import jax
import numpy as np


def main(path):
    jax.config.update("jax_enable_x64", True)
    from mtd_jax import compilation
    from mtd_jax.network.weights import bind, model_arrays
    from mtd_jax.training import losses
    from tests.helpers.golden_models import STUDENT, TEACHER, golden, mel_from_torch, recipe_model

    compilation.prepare()
    student_config, teacher_config = (dataclasses.replace(c, compute_dtype="float64") for c in (STUDENT, TEACHER))

    @jax.jit
    def gradient(arrays, teacher_arrays, frames, mel, labels, uncertainty):
        _, expected = bind(teacher_config, teacher_arrays)(frames, mel, return_features=True)

        def total(arrays):
            logits, features = bind(student_config, arrays)(frames, mel, return_features=True)
            return losses.mtd_loss(logits, labels, features, expected, uncertainty, 1.0)[0]

        return jax.grad(total)(arrays)

    # Arguments of the program: as constants in it, hundreds of MB would be compiled.
    student, teacher = (
        {name: np.asarray(array, np.float64) for name, array in model_arrays(recipe_model(*which)).items()}
        for which in ((STUDENT, 1), (TEACHER, 0))
    )
    batch = golden("mtd_loss_T1.npz")
    inputs = batch["frames"], mel_from_torch(batch["mel"]), batch["labels"], batch["uncertainty"]
    np.savez(path, **{name: np.asarray(found) for name, found in gradient(student, teacher, *inputs).items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
