"""Experiments on data that everyone can make: one command runs a table, another draws it from what the runs wrote.

In: a table of `tables.py` and the corpus of `corpus.py`. Out: a JSON file per run under `results/`, and from these
alone the tables and figures of docs/experiments.md (`report.py`). Start with `tables.py`; `run.py` runs them.
"""
