"""Singing voices, windows of a second: VocaLiST with 25 frames on Acappella, and a student distilled from it.

Command:   python main.py --mode=train --config=configs/acappella.py --config.data.root=ACAPPELLA --workdir=DIR
           python main.py --mode=train --config=configs/acappella.py:student --config.teacher=CHECKPOINT \
               --config.data.root=ACAPPELLA --workdir=DIR
           python main.py --mode=evaluate --config=configs/acappella.py --config.data.root=ACAPPELLA \
               --checkpoint=CHECKPOINT --list=SPLIT
           ACAPPELLA holds jpgs/ and splits_16k/; lists are their splits (--config.data.train_list=SPLIT).
Cost:      as XLA counts the forward pass of a sample: teacher 162 GFLOP, student 39; so 486 a sample of the first
           training (three forward passes' worth), 280 of the second. 25 pictures are decoded a sample, not 5.
Expected:  not known: no published figure for this set-up is at hand, and it was not run by this project.
Variants:  "student" is MTDVocaLiST by the MTD loss (its distillation on Acappella is not published);
           "tiny" shrinks the teacher to a laptop's size.
"""

from mtd_jax.config import Config, default_config, variant_error
from mtd_jax.network.model import ModelConfig

WINDOW_FRAMES = 25


def get_config(variant: str = "") -> Config:
    if variant not in ("", "student", "tiny"):
        raise variant_error(__file__, variant, ("student", "tiny"))
    if variant == "student":
        model = ModelConfig.mtd_vocalist(window_frames=WINDOW_FRAMES)
    elif variant == "tiny":
        model = ModelConfig.tiny(window_frames=WINDOW_FRAMES)
    else:
        # Pixels of the released 25-frame weights, so that a training can be compared with them.
        model = ModelConfig.vocalist(window_frames=WINDOW_FRAMES)
    config = default_config(model)
    config.data.format = "acappella"
    config.data.train_list = "train"
    config.evaluation.protocol = "acappella"  # K = 25 at ±1 and ±5; a 5-frame model gets K = 5, 10, … 25
    if variant == "student":
        config.loss.name = "mtd"
        config.optimizer.schedule = "stepwise"
        config.optimizer.warmup_epochs = 10.0
    if variant == "tiny":
        config.batch_size = config.val_batch_size = 8
        config.data.workers = 0
        config.epochs = 2
    return config
