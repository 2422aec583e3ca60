"""The demo's three trainings, small enough for a laptop; `python main.py` runs them all.

Command:  python main.py                                                     (the whole demo)
          python main.py --mode=train --config=configs/demo.py:teacher \
              --config.data.root=CORPUS --workdir=DIR                        (one training)
Variants: "teacher", "student_plain" (no distillation) and "student_mtd".
"""

from mtd_jax.config import NO_DROPOUT, Config, small_config, variant_error
from mtd_jax.network.model import ModelConfig

VARIANTS = ("teacher", "student_plain", "student_mtd")


def get_config(variant: str = "teacher") -> Config:
    """The config of one of the three trainings."""
    if variant not in VARIANTS:
        raise variant_error(__file__, variant, VARIANTS)
    teacher_widths = {"widths": (8, 8, 16, 32, 64)} if variant == "teacher" else {}
    model = ModelConfig.tiny(num_layers=2, **NO_DROPOUT, **teacher_widths)
    config = small_config(model)
    config.data.workers = 0
    config.draws_per_epoch = 320  # 80 steps
    config.epochs = 4 if variant == "teacher" else 3
    if variant == "student_mtd":
        config.loss.name = "mtd"
    return config
