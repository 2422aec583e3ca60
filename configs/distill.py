"""MTDVocaLiST, the student, distilled as published: 13.28 M parameters, MTD loss, LRS2 pretrain list.

Command:   python main.py --mode=train --config=configs/distill.py --config.teacher=CHECKPOINT \
               --config.data.root=LRS2 --workdir=DIR
           Ablations: --config.loss.use_attention=False (no CAD), --config.loss.use_value=False (no VR),
           --config.loss.temperature=5, --config.loss.name=mtd_layers --config.loss.layers.fusion="(4,)".
           Baselines: --config.loss.name=kd|rkd|fitnet|minilm (kd with temperature 5), or bce without a teacher.
Cost:      60 GFLOP per sample (teacher forward 34.7, student 3 × 8.44), 96,318 samples per epoch, 80 epochs.
Expected:  K5 91.46 %, K15 99.68 % on LRS2, as published; this project has not run it.
Variants:  "tiny" is small enough for a laptop; its teacher must have as many layers and heads.
"""

from mtd_jax.config import Config, default_config, variant_error
from mtd_jax.network.model import ModelConfig


def get_config(variant: str = "") -> Config:
    """The config of the published student, or of the variant."""
    if variant not in ("", "tiny"):
        raise variant_error(__file__, variant, ("tiny",))
    config = default_config(ModelConfig.tiny() if variant else ModelConfig.mtd_vocalist())
    config.loss.name = "mtd"
    config.optimizer.schedule = "stepwise"
    config.optimizer.warmup_epochs = 10.0
    if variant:
        config.batch_size = config.val_batch_size = 8
        config.data.workers = 0
        config.epochs = 2
    return config
