"""One process of a test with several: joins the others and runs a list of jobs, so that it starts only once.

Usage: python -m tests.helpers.process_jobs JOBS [COORDINATOR NUM_PROCESSES PROCESS_ID]. JOBS is a JSON list of
{"train": workdir, "config": {field: value}, "root": corpus} and {"evaluate": checkpoint, "output": file, …}.
Computes in float64: what is left between one process and several is then not hidden by rounding that flips a ReLU.
"""

import json
import sys

import jax
import ml_collections


def small_config(root: str, changes: dict) -> ml_collections.ConfigDict:
    """A tiny model in float64 on the corpus `root`; `changes` by dotted name. Needs `jax_enable_x64`."""
    from mtd_jax.config import default_config
    from mtd_jax.network.model import ModelConfig

    widths = {"widths": (4, 4, 8, 8, 8), "stem_stride": (2, 2), "last_stride": (1, 1), "pixels": "rgb01"}
    quiet = dict.fromkeys(("embedding_dropout", "relu_dropout", "residual_dropout"), 0.0)
    config = default_config(ModelConfig(**widths, **quiet, num_heads=2, num_layers=1, compute_dtype="float64"))
    changes = {"data.root": root, "data.train_list": "train", "data.workers": 0, "log_every": 1} | changes
    config.update_from_flattened_dict(changes)
    return config


def main(path: str, *place: str) -> None:
    from mtd_jax import compilation
    from mtd_jax.distributed import launch
    from mtd_jax.evaluation.evaluate import evaluate_list
    from mtd_jax.training.train import train

    jax.config.update("jax_enable_x64", True)
    compilation.prepare()
    if place:
        launch.start(place[0], int(place[1]), int(place[2]))
    with open(path) as file:
        jobs = json.load(file)
    with launch.abort_on_failure():
        for job in jobs:
            config = small_config(job["root"], job["config"])
            if "train" in job:
                train(config, job["train"])
            else:
                evaluate_list(config, job["evaluate"], "test", job["output"])


if __name__ == "__main__":
    main(*sys.argv[1:])
