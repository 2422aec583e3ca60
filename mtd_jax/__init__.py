"""Audio-visual synchronisation in JAX: VocaLiST, MTDVocaLiST, and the MTD distillation loss.

The names below are imported when first used, so that data workers start without JAX.
"""

import importlib

_HOME = {
    "load_model": "mtd_jax.checkpoint",
    "save_model": "mtd_jax.checkpoint",
    "ModelConfig": "mtd_jax.network.model",
    "SyncModel": "mtd_jax.network.model",
    "Features": "mtd_jax.network.model",
    "log_mel": "mtd_jax.network.mel",
    "Scorer": "mtd_jax.scoring",
    "score_clip": "mtd_jax.scoring",
    "context_accuracy": "mtd_jax.scoring",
    "detect_offset": "mtd_jax.sync.detect",
    "mtd_loss": "mtd_jax.training.losses",
    "UserError": "mtd_jax.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'mtd_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return __all__
