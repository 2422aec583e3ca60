"""VocaLiST, the teacher, trained as published: 80.1 M parameters, BCE, LRS2 pretrain list.

Command:   python main.py --mode=train --config=configs/teacher.py --config.data.root=LRS2 --workdir=DIR
Cost:      104 GFLOP a sample (34.7 forward), 96,318 samples an epoch.
Expected:  K5 92.44 %, K15 99.76 % on LRS2 as published for the reproduced teacher (not run by this project).
Variants:  "tiny" shrinks it to a laptop's size, for trying things out.
"""

from mtd_jax.config import Config, default_config, variant_error
from mtd_jax.network.model import ModelConfig


def get_config(variant: str = "") -> Config:
    if variant == "tiny":
        config = default_config(ModelConfig.tiny())
        config.batch_size = config.val_batch_size = 8
        config.data.workers = 0
        config.epochs = 2
        return config
    if variant:
        raise variant_error(__file__, variant, ("tiny",))
    # RGB in [0, 255], as the teacher that the published student learned from.
    return default_config(ModelConfig.vocalist(pixels="rgb255"))
