"""Singing voices: VocaLiST with windows of 25 frames (one second) on Acappella, and a student distilled from it.

Command:   python main.py --mode=train --config=configs/acappella.py --config.data.root=ACAPPELLA --workdir=DIR
           python main.py --mode=train --config=configs/acappella.py:student --config.teacher=CHECKPOINT \
               --config.data.root=ACAPPELLA --workdir=DIR
           python main.py --mode=evaluate --config=configs/acappella.py --config.data.root=ACAPPELLA \
               --checkpoint=CHECKPOINT --list=SPLIT
           ACAPPELLA contains jpgs/ and splits_16k/; the lists are its splits (--config.data.train_list=SPLIT).
Cost:      by XLA's count, a forward pass takes 162 GFLOP per sample in the teacher and 39 in the student. So
           training takes 486 GFLOP per sample for the teacher (three forward passes' worth) and 280 for the
           student. Each sample decodes 25 frames, not 5.
Expected:  unknown: there is no published figure for this set-up, and this project has not run it.
Variants:  "student" is MTDVocaLiST distilled with the MTD loss (not published for Acappella);
           "tiny" is a teacher small enough for a laptop.
"""

from mtd_jax.config import Config, default_config, variant_error
from mtd_jax.network.model import ModelConfig

WINDOW_FRAMES = 25


def get_config(variant: str = "") -> Config:
    """The config of the teacher, or of a variant."""
    if variant not in ("", "student", "tiny"):
        raise variant_error(__file__, variant, ("student", "tiny"))
    if variant == "student":
        model = ModelConfig.mtd_vocalist(window_frames=WINDOW_FRAMES)
    elif variant == "tiny":
        model = ModelConfig.tiny(window_frames=WINDOW_FRAMES)
    else:
        # The pixel convention of the released 25-frame weights, so that a training can be compared with them.
        model = ModelConfig.vocalist(window_frames=WINDOW_FRAMES)
    config = default_config(model)
    config.data.format = "acappella"
    config.data.train_list = "train"
    config.evaluation.protocol = "acappella"  # K = 25 within ±1 and ±5 frames; for a 5-frame model K = 5, 10, … 25
    if variant == "student":
        config.loss.name = "mtd"
        config.optimizer.schedule = "stepwise"
        config.optimizer.warmup_epochs = 10.0
    if variant == "tiny":
        config.batch_size = config.val_batch_size = 8
        config.data.workers = 0
        config.epochs = 2
    return config
