"""Training of a teacher or a student, with or without distillation.

In: a config (see `mtd_jax.config`) and a work directory.
Out: checkpoints, `metrics.jsonl` and TensorBoard files in that directory. A run that was interrupted resumes from
its last checkpoint and computes the same numbers.

Start with `train.py`: one loop, read from top to bottom, around the pure step in `step.py`. `losses.py` has every
loss as a pure function, `objective.py` picks among them by config, `optimizer.py` builds the optimizer and its
schedule. `resume.py` saves and restores a run; `metrics.py` logs it.
"""
