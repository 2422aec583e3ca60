"""Converts a released PyTorch checkpoint into a checkpoint directory.

    python -m converters.torch_to_flax --checkpoint=pure_MTDVocaLiST.pth --model=mtd_vocalist --output=DIR

It keeps weights, BatchNorm statistics, learned loss weights and the training step, but no optimiser state. The
pixel convention belongs to the weights and is stored with them.
"""

import os
import tempfile
from pathlib import Path

from absl import flags

from mtd_jax.errors import UserError, main_function
from mtd_jax.network.model import PIXELS, count_parameters
from mtd_jax.released.convert import MODELS, PIXELS_ADVICE, read_model, write_model

from . import command

_FLAGS = flags.FlagValues()
flags.DEFINE_string("checkpoint", None, "the .pth file", _FLAGS, required=True)
flags.DEFINE_enum("model", None, list(MODELS), "the network that the weights belong to", _FLAGS, required=True)
flags.DEFINE_enum(
    "pixels", None, PIXELS, "the pixel convention of the weights; default: that of the released ones", _FLAGS
)
flags.DEFINE_string("output", None, "the checkpoint directory to write; must not exist", _FLAGS, required=True)
flags.DEFINE_bool("verify", False, "compare with the PyTorch twin; fail if they differ by more than 1e-4", _FLAGS)
flags.DEFINE_integer(
    "window_frames", 5, "frames per window; 25 for vocalist_25f_acappella.pth", 1, flag_values=_FLAGS
)


def convert(
    checkpoint: str | os.PathLike,
    model: str,
    output: str | os.PathLike,
    pixels: str | None = None,
    verify: bool = False,
    window_frames: int = 5,
) -> None:
    """Converts the file `checkpoint` into the directory `output`, which appears whole and verified or not at all.

    Args:
      model: a name in `MODELS`.
      pixels: the convention of the weights; None: that of the released weights of this model.
      verify: compare the result with the PyTorch twin, see `verify_conversion`.
      window_frames: T of the model.

    Raises:
      UserError: the file is unusable or belongs to the other model, `output` exists or cannot be written, or the
        converted model differs from the PyTorch twin.
    """
    output = Path(output)
    if os.path.lexists(output):
        raise UserError(f"{output} exists already; name a new directory or remove it")
    flax_model, released = read_model(checkpoint, model, pixels, window_frames)
    config = flax_model.config
    for note in released.notes:
        print(f"note: {note}")
    print(f"pixels: {config.pixels} ({'as requested' if pixels else f'the default: {PIXELS_ADVICE[model]}'})")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            unverified = Path(folder) / output.name
            write_model(unverified, flax_model, released, checkpoint)
            if verify:
                from .verify import verify_conversion  # imports the twin, which most conversions do not need

                verify_conversion(config, released.state_dict, unverified)
            os.rename(unverified, output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    weights = "with" if released.loss_weights is not None else "without"
    print(
        f"wrote {output}: {model}, {count_parameters(flax_model):,} parameters, step {released.step}, "
        f"{weights} learned loss weights"
    )


def _work() -> None:
    f = _FLAGS
    convert(f.checkpoint, f.model, f.output, f.pixels, f.verify, f.window_frames)


main = main_function(_work, _FLAGS, __doc__)

if __name__ == "__main__":
    command.run(main)
