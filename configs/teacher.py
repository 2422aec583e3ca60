"""VocaLiST, the teacher, trained as published: 80.1 M parameters, BCE, LRS2 pretrain list.

Command:   python main.py --mode=train --config=configs/teacher.py --config.data.root=LRS2 --workdir=DIR
Cost:      104 GFLOP per sample (34.7 forward), 96,318 samples per epoch.
Expected:  K5 92.44 %, K15 99.76 % on LRS2, as published for the reproduced teacher; this project has not run it.
Variants:  "tiny" is small enough for a laptop, to try things out.
"""

from mtd_jax.config import Config, default_config, variant_error
from mtd_jax.network.model import ModelConfig


def get_config(variant: str = "") -> Config:
    """The config of the published teacher, or of the variant."""
    if variant == "tiny":
        config = default_config(ModelConfig.tiny())
        config.batch_size = config.val_batch_size = 8
        config.data.workers = 0
        config.epochs = 2
        return config
    if variant:
        raise variant_error(__file__, variant, ("tiny",))
    # RGB in [0, 255], like the teacher that the published student was distilled from.
    return default_config(ModelConfig.vocalist(pixels="rgb255"))
