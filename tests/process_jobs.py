"""One of several processes of a test: joins the others and does a list of jobs, so that it starts only once.

Usage: process_jobs.py JOBS [COORDINATOR NUM_PROCESSES PROCESS_ID]. JOBS is a file with {"float64": whether to
compute in float64 instead of float32 with softplus for ReLU, "jobs": a list of {"train": workdir,
"config": {field: value}, "root": corpus} or {"evaluate": checkpoint, "output": file, …}}.
"""

import json
import os
import sys


def small_config(root, changes):
    """A tiny model on the corpus `root`; `changes` by dotted name."""
    from mtd_jax.config import default_config
    from mtd_jax.model import ModelConfig

    widths = {"widths": (4, 4, 8, 8, 8), "stem_stride": (2, 2), "last_stride": (1, 1), "pixels": "rgb01"}
    quiet = dict.fromkeys(("embedding_dropout", "relu_dropout", "residual_dropout"), 0.0)
    config = default_config(ModelConfig(**widths, **quiet, num_heads=2, num_layers=1))
    changes = {"data.root": root, "data.train_list": "train", "data.workers": 0, "log_every": 1} | changes
    config.update_from_flattened_dict(changes)
    return config


def smooth_relu():
    """Softplus for ReLU: where sums are rounded otherwise, ReLU's kink grows into different trainings."""
    import jax
    from flax import nnx

    nnx.relu = jax.nn.softplus


def use_float64():
    """Computes in float64 wherever this package says float32; to be called before its modules are imported."""
    # XLA has no library for float64 convolutions: its own loops, which are slow unless LLVM optimises them.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=3"
    import jax
    import jax.numpy as jnp
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    jnp.float32, np.float32 = jnp.float64, np.float64
    from mtd_jax.model import ModelConfig

    check = ModelConfig.__post_init__

    def post_init(self):
        object.__setattr__(self, "compute_dtype", "float32")
        check(self)
        object.__setattr__(self, "compute_dtype", "float64")

    ModelConfig.__post_init__ = post_init


def do(jobs):
    from mtd_jax.evaluate import evaluate_list
    from mtd_jax.train import train

    for job in jobs:
        config = small_config(job["root"], job["config"])
        if "train" in job:
            train(config, job["train"], report=print)
        else:
            evaluate_list(config, job["evaluate"], "test", job["output"])


def main(path, *place):
    with open(path) as file:
        work = json.load(file)
    if work["float64"]:
        use_float64()
    from mtd_jax import peers, platform, processes

    platform.prepare()
    if place:
        processes.start(place[0], int(place[1]), int(place[2]))
    if not work["float64"]:
        smooth_relu()
    with peers.all_or_none():
        do(work["jobs"])
    peers.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
