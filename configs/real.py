"""Real faces from little data: a small teacher, and a smaller student distilled from it, on two CPU cores.

The first epochs see synthetic faces alone, where the loss leaves chance; then three draws of four are real. Every
clip is altered (`data/augment.py`), because one speaker in one studio is all the real data there is.

Command:  python main.py --mode=preprocess --videos=GRID/s1 --output=REAL        (see docs/real.md for the lists)
          python main.py --mode=synthesize --output=CORPUS --train_clips=800 --val_clips=12 --test_clips=24
          python main.py --mode=train --config=configs/real.py:teacher --config.data.root=REAL \
              --config.data.extra.root=CORPUS --workdir=real_teacher
          python main.py --mode=train --config=configs/real.py:student --config.data.root=REAL \
              --config.data.extra.root=CORPUS --config.teacher=real_teacher --workdir=real_student
Variants: "teacher"; "student"; "further", which goes on from a teacher (--config.init) with clips altered more.
"""

import dataclasses

from mtd_jax.config import NO_DROPOUT, Config, small_config, variant_error
from mtd_jax.data.augment import Augmentation
from mtd_jax.network.model import ModelConfig

VARIANTS = ("teacher", "student", "further")
_LARGE, _SMALL = (8, 8, 16, 32, 64), (8, 8, 16, 24, 40)
# Far apart enough to make other people of one: other voices (pitch and formants), other faces (bent, stretched).
AUGMENTATION = Augmentation(
    shift=(0.9, -0.07, 0.07),
    scale=(0.9, 0.82, 1.2),
    aspect=(0.7, 0.88, 1.14),
    rotation=(0.6, -10.0, 10.0),
    flip=(0.5, 1.0, 1.0),
    bend=(0.5, 0.01, 0.04),
    occlusion=(0.05, 0.1, 0.25),
    grey=(0.25, 0.3, 1.0),
    gamma=(0.6, 0.6, 1.6),
    contrast=(0.6, 0.6, 1.35),
    brightness=(0.5, -35.0, 35.0),
    colour_cast=(0.6, 0.02, 0.25),
    blur=(0.3, 0.4, 1.4),
    low_resolution=(0.3, 30.0, 80.0),
    noise=(0.4, 1.0, 7.0),
    jpeg=(0.25, 25.0, 85.0),
    freeze=(0.03, 0.1, 0.2),
    voice=(0.7, 0.8, 1.35),
    reverberation=(0.3, 0.1, 0.5),
    babble=(0.15, 8.0, 25.0),
    music=(0.15, 8.0, 25.0),
    hiss=(0.4, 8.0, 35.0),
    low_pass=(0.25, 3000.0, 7000.0),
    high_pass=(0.3, 60.0, 300.0),
    tilt=(0.6, -4.0, 4.0),
    codec=(0.15, 0.3, 1.0),
    gain=(0.8, -15.0, 6.0),
)
# Crops beside the face and low bit rates are what the first included model suffered from most (docs/real.md).
FURTHER = dataclasses.replace(
    AUGMENTATION,
    shift=(0.9, -0.11, 0.11),
    scale=(0.9, 0.78, 1.25),
    jpeg=(0.4, 12.0, 85.0),
    low_resolution=(0.35, 24.0, 80.0),
)


def get_config(variant: str = "teacher") -> Config:
    """The config of one of the two trainings."""
    if variant not in VARIANTS:
        raise variant_error(__file__, variant, VARIANTS)
    widths = _SMALL if variant == "student" else _LARGE
    config = small_config(ModelConfig.tiny(num_layers=2, widths=widths, **NO_DROPOUT))
    config.data.workers = 1
    config.data.augment = dataclasses.asdict(AUGMENTATION)
    config.data.extra.share = 0.25
    config.data.extra.alone_epochs = 3.0 if variant == "teacher" else 1.0
    config.draws_per_epoch = 800  # 200 steps
    config.epochs = 28 if variant == "teacher" else 12
    if variant == "student":
        config.loss.name = "mtd"
    if variant == "further":
        config.init = "box"
        config.data.augment = dataclasses.asdict(FURTHER)
        config.data.extra.alone_epochs = 0.0
        config.optimizer.learning_rate = 2e-3
        config.epochs = 16
    return config
