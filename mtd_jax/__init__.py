"""Audio-video synchronisation in JAX: VocaLiST, MTDVocaLiST, and the MTD distillation loss.

Public names are imported when first used, so that data workers start without JAX. docs/architecture.md is the map.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:  # the same names as in _HOME, for editors and type checkers
    from mtd_jax.checkpoint import save_model as save_model
    from mtd_jax.errors import UserError as UserError
    from mtd_jax.evaluation.evaluate import evaluate as evaluate
    from mtd_jax.guidance import embed as embed
    from mtd_jax.guidance import sync_loss as sync_loss
    from mtd_jax.models import load_model as load_model
    from mtd_jax.network.mel import log_mel as log_mel
    from mtd_jax.network.model import Features as Features
    from mtd_jax.network.model import ModelConfig as ModelConfig
    from mtd_jax.network.model import SyncModel as SyncModel
    from mtd_jax.scoring import Scorer as Scorer
    from mtd_jax.scoring import context_accuracy as context_accuracy
    from mtd_jax.scoring import score_clip as score_clip
    from mtd_jax.sync.detect import detect_offset as detect_offset
    from mtd_jax.sync.fix import shift_audio as shift_audio
    from mtd_jax.sync.verdict import Result as Result
    from mtd_jax.sync.verdict import Track as Track
    from mtd_jax.training.losses import mtd_loss as mtd_loss

_HOME = {
    "load_model": "mtd_jax.models",
    "save_model": "mtd_jax.checkpoint",
    "UserError": "mtd_jax.errors",
    "evaluate": "mtd_jax.evaluation.evaluate",
    "embed": "mtd_jax.guidance",
    "sync_loss": "mtd_jax.guidance",
    "log_mel": "mtd_jax.network.mel",
    "Features": "mtd_jax.network.model",
    "ModelConfig": "mtd_jax.network.model",
    "SyncModel": "mtd_jax.network.model",
    "Scorer": "mtd_jax.scoring",
    "context_accuracy": "mtd_jax.scoring",
    "score_clip": "mtd_jax.scoring",
    "detect_offset": "mtd_jax.sync.detect",
    "shift_audio": "mtd_jax.sync.fix",
    "Result": "mtd_jax.sync.verdict",
    "Track": "mtd_jax.sync.verdict",
    "mtd_loss": "mtd_jax.training.losses",
}
__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mtd_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
