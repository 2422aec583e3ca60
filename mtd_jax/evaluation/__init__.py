"""The accuracy of a model on a data set, by the published protocol: `--mode=evaluate`.

In: a checkpoint and a list of clips.
Out: the share of windows whose offset is right, for each number of context frames, as a table and as JSON.

Start with `evaluate.py`. `protocol.py` says which windows, contexts and tolerances count for each data set.
"""
