"""The demo's three trainings, small enough for a laptop; `python main.py` runs them all.

Command:  python main.py                                                     (the whole demo)
          python main.py --mode=train --config=configs/demo.py:teacher \
              --config.data.root=CORPUS --workdir=DIR                        (one training)
Variants: "teacher", "student_plain" (no distillation) and "student_mtd".
"""

from mtd_jax.config import Config, default_config, variant_error
from mtd_jax.network.model import ModelConfig

VARIANTS = ("teacher", "student_plain", "student_mtd")
NO_DROPOUT = {"embedding_dropout": 0.0, "relu_dropout": 0.0, "residual_dropout": 0.0}


def get_config(variant: str = "teacher") -> Config:
    """The config of one of the three trainings."""
    if variant not in VARIANTS:
        raise variant_error(__file__, variant, VARIANTS)
    teacher_widths = {"widths": (8, 8, 16, 32, 64)} if variant == "teacher" else {}
    model = ModelConfig.tiny(num_layers=2, **NO_DROPOUT, **teacher_widths)
    config = default_config(model)
    config.data.train_list = "train"
    config.data.pairing = "grid"
    config.data.windows = 8
    config.data.min_gap = 5  # no shared frames: with overlapping windows the loss stays at chance for long
    config.data.workers = 0
    config.batch_size = 4
    config.draws_per_epoch = 320  # 80 steps
    config.epochs = 4 if variant == "teacher" else 3
    config.loss.balance_pairs = True
    config.loss.info_nce_weight = 1.0
    config.loss.token_info_nce_weight = 1.0  # without this the MTD student stays at chance
    config.optimizer.learning_rate = 3e-3
    config.optimizer.loss_learning_rate = 2e-2
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 0.4
    config.optimizer.weight_decay = 1e-4
    config.optimizer.clip_norm = 1.0
    config.val_batch_size = 32
    config.val_pairs_per_clip = 8
    config.log_every = 20
    if variant == "student_mtd":
        config.loss.name = "mtd"
    return config
