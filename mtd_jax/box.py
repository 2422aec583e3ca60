"""The included model: a small one that comes with the package, so that a verdict needs no checkpoint.

    python -m mtd_jax.box --checkpoint=DIR --name=NAME

packs the weights of a checkpoint into `assets/model.npz`: float16, with the description as JSON among them.
`assets/MODEL_CARD.md` says what the model was trained on and what it cannot do.
"""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mtd_jax.checkpoint import find_checkpoint, load_description, load_model, model_from_arrays, usable_config
from mtd_jax.errors import UserError, main_function
from mtd_jax.network.model import SyncModel, count_parameters
from mtd_jax.network.weights import model_arrays
from mtd_jax.storage import atomic

FILE = Path(__file__).parent / "assets" / "model.npz"
_DESCRIPTION = "description"
_MOST_BYTES = 6_000_000
_KEPT = ("format", "model", "mel", "step", "source", "licence", "versions")

_FLAGS = flags.FlagValues()
flags.DEFINE_string("checkpoint", None, "the checkpoint to pack", _FLAGS, required=True)
flags.DEFINE_string("name", None, "how verdicts name the model", _FLAGS, required=True)
flags.DEFINE_string("licence", "", "whose terms apply to the data and the weights", _FLAGS)


def box_name() -> str:
    """The name of the included model."""
    return box_description()["name"]


def box_description() -> dict[str, Any]:
    """What is known of the included model: name, source, licence, step, … ."""
    return _read()[0]


def load_box() -> SyncModel:
    """The included model.

    Raises:
      UserError: its file is missing or of another version: the installation is not whole.
    """
    description, arrays = _read()
    return model_from_arrays(usable_config(description, FILE), arrays, str(FILE))


def pack(checkpoint: str, name: str, licence: str) -> int:
    """Replaces the included model; returns the size of its file in bytes.

    Raises:
      UserError: there is no usable checkpoint, it is too large, or it does not survive float16.
    """
    path = find_checkpoint(checkpoint)
    arrays = {key: np.asarray(array) for key, array in model_arrays(load_model(path)).items()}
    with np.errstate(over="ignore"):  # becomes infinite, which is reported
        halves = {key: array.astype(np.float16) for key, array in arrays.items()}
    if bad := [key for key, array in halves.items() if not np.isfinite(array).all()]:
        raise UserError(f"{checkpoint}: {bad[0]} holds numbers too large for float16")
    described = {key: value for key, value in load_description(path).items() if key in _KEPT}
    text = json.dumps(described | {"name": name, "licence": licence or described.get("licence", "")})
    size = sum(array.nbytes for array in halves.values())
    if size > _MOST_BYTES:
        raise UserError(f"{checkpoint}: expected at most {_MOST_BYTES} bytes in float16, got {size}")
    FILE.parent.mkdir(exist_ok=True)
    with atomic(FILE) as scratch, scratch.open("wb") as file:
        np.savez(file, **{_DESCRIPTION: np.array(text), **halves})  # pyright: ignore[reportArgumentType]
    return FILE.stat().st_size


def _read() -> tuple[dict, dict[str, np.ndarray]]:
    """The description and the arrays, as float32."""
    try:
        with FILE.open("rb") as stream, np.load(stream) as file:
            arrays = {name: file[name].astype(np.float32) for name in file.files if name != _DESCRIPTION}
            return json.loads(str(file[_DESCRIPTION])), arrays
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{FILE}: the included model cannot be read; install the package again") from error


def _command() -> None:
    size = pack(_FLAGS.checkpoint, _FLAGS.name, _FLAGS.licence)
    print(f"wrote {FILE}: {_FLAGS.name}, {count_parameters(load_box()):,} parameters, {size:,} bytes")


main = main_function(_command, _FLAGS, __doc__)

if __name__ == "__main__":
    sys.exit(main(sys.argv))
