"""Converts a checkpoint directory into a .pth file of the released form, for the public PyTorch code.

    python -m converters.flax_to_torch --checkpoint=DIR --output=X.pth

The file contains {"state_dict", "aw_loss" (if the run learned loss weights), "global_step"}.
"""

import os
from pathlib import Path

import numpy as np
from absl import flags

from mtd_jax.checkpoint import load_description, load_loss_weights, load_model
from mtd_jax.errors import UserError, main_function
from mtd_jax.network.model import ModelConfig
from mtd_jax.network.weights import model_arrays
from mtd_jax.released.key_table import to_torch

from . import command
from .torch_file import write_checkpoint

_FLAGS = flags.FlagValues()
flags.DEFINE_string("checkpoint", None, "the checkpoint directory", _FLAGS, required=True)
flags.DEFINE_string("output", None, "the .pth file to write; must not exist", _FLAGS, required=True)

# What the public code hard-codes. Pixels, dropouts and window length do not change what the weights mean to it.
_ARCHITECTURE = (
    "widths",
    "num_heads",
    "num_layers",
    "stem_stride",
    "last_stride",
    "zero_tokens_lose_position",
)


def convert(checkpoint: str | os.PathLike, output: str | os.PathLike) -> None:
    """Converts the directory `checkpoint` into the file `output`, which appears whole or not at all.

    Raises:
      UserError: there is no usable checkpoint, or `output` exists or cannot be written.
    """
    output = Path(output)
    if os.path.lexists(output):
        raise UserError(f"{output} exists already; name a new file or remove it")
    model = load_model(checkpoint)
    arrays = {name: np.asarray(array) for name, array in model_arrays(model).items()}
    loss_weights = load_loss_weights(checkpoint)
    step = load_description(checkpoint)["step"]
    write_checkpoint(output, to_torch(model.config, arrays, str(checkpoint)), loss_weights, step)
    weights = "with" if loss_weights is not None else "without"
    print(
        f"wrote {output}: {_kind(model.config)}, pixels {model.config.pixels}, step {step}, "
        f"{weights} learned loss weights"
    )


def _kind(config: ModelConfig) -> str:
    """The released model with this architecture, for the message."""

    def architecture(c: ModelConfig) -> list[object]:
        return [getattr(c, name) for name in _ARCHITECTURE]

    for name, released in (
        ("vocalist", ModelConfig.vocalist()),
        ("mtd_vocalist", ModelConfig.mtd_vocalist()),
    ):
        if architecture(config) == architecture(released):
            return name
    return "no released architecture (converters.torch_model loads it, the public code does not)"


main = main_function(lambda: convert(_FLAGS.checkpoint, _FLAGS.output), _FLAGS, __doc__)

if __name__ == "__main__":
    command.run(main)
