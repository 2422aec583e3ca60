"""Converts a released PyTorch checkpoint into a checkpoint directory.

    python -m converters.torch_to_flax --checkpoint=pure_MTDVocaLiST.pth --model=mtd_vocalist --output=DIR

It keeps weights, BatchNorm statistics, learned loss weights and the training step, but no optimiser state. The
pixel convention belongs to the weights and is stored with them.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import flags

from mtd_jax.checkpoint import model_from_arrays, save_model
from mtd_jax.errors import UserError, main_function
from mtd_jax.network.model import PIXELS, ModelConfig, count_parameters

from . import command
from .key_table import to_flax, torch_shapes
from .torch_file import read_checkpoint

MODELS = {"vocalist": ModelConfig.vocalist, "mtd_vocalist": ModelConfig.mtd_vocalist}
_PIXELS_ADVICE = {
    "vocalist": "correct for vocalist_*.pth; the reproduced teacher repro_Vocalist.pth needs --pixels=rgb255",
    "mtd_vocalist": "correct for pure_MTDVocaLiST.pth; pass --pixels for weights trained on others",
}

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
    changes = {"window_frames": window_frames} | ({} if pixels is None else {"pixels": pixels})
    config = MODELS[model](**changes)
    released = read_checkpoint(checkpoint)
    _check_model(released.state_dict, model, checkpoint)
    flax_model = model_from_arrays(config, to_flax(config, released.state_dict, str(checkpoint)), str(checkpoint))
    for note in released.notes:
        print(f"note: {note}")
    print(f"pixels: {config.pixels} ({'as requested' if pixels else f'the default: {_PIXELS_ADVICE[model]}'})")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            unverified = Path(folder) / output.name
            save_model(
                unverified,
                flax_model,
                step=released.step,
                loss_weights=released.loss_weights,
                source=f"converted from {Path(checkpoint).name}",
            )
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


def _check_model(state_dict: Mapping[str, np.ndarray], asked: str, source: str | os.PathLike) -> None:
    """Raises `UserError` for a file of the other model, or of another network altogether.

    A file that fits the requested model best, but not exactly, is left to `to_flax`, which names what differs.
    """

    def fitting(model: str) -> int:
        shapes = torch_shapes(MODELS[model]())
        return sum(name in shapes and shapes[name].shape == array.shape for name, array in state_dict.items())

    scores = {model: fitting(model) for model in MODELS}
    best = max(scores, key=lambda model: scores[model])
    if scores[asked] == scores[best] > 0:
        return
    if scores[best] == 0:
        raise UserError(
            f"{source}: none of its {len(state_dict)} entries belongs to {' or '.join(MODELS)}; expected names "
            f"like vid_prenet.0.conv_block.0.weight, got {next(iter(state_dict))}"
        )
    raise UserError(
        f"{source} looks like {best} ({scores[best]} of {len(state_dict)} entries fit it, {scores[asked]} "
        f"fit {asked}); pass --model={best}"
    )


def _work() -> None:
    f = _FLAGS
    convert(f.checkpoint, f.model, f.output, f.pixels, f.verify, f.window_frames)


main = main_function(_work, _FLAGS, __doc__)

if __name__ == "__main__":
    command.run(main)
