"""Models and training configurations small enough for a test."""

from mtd_jax.config import default_config
from mtd_jax.network.model import ModelConfig

SMALL = {"widths": (4, 4, 8, 8, 8), "num_heads": 2, "num_layers": 1, "stem_stride": (2, 2), "last_stride": (1, 1)}


STUDENT = ModelConfig(**SMALL)


def small_config(corpus, **loss):
    config = default_config(STUDENT)
    config.data.root = str(corpus)
    config.data.train_list = "train"
    config.data.workers = 0
    config.batch_size = config.val_batch_size = 2
    config.epochs = 2
    config.draws_per_epoch = 4
    config.log_every = 1
    config.optimizer.learning_rate = 1e-3
    config.loss.update(loss)
    return config
