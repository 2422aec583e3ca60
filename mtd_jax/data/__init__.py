"""Clips on disk, and batches of training examples drawn from them.

No module here imports the network, Flax or optax, so that data workers start fast.

In: the root of a data set, its format (LRS2, Acappella or TFDS ArrayRecords) and the name of a list.
Out: a source of `Clip`s (frames at 25 fps, audio at 16 kHz, decoded only where sliced), and from it an iterator of
NumPy batches: deterministic, resumable, split over processes.

Start with `clip.py`, then `sources.py`, which opens a source by its format (`lrs2.py`, `acappella.py`,
`records.py`). `sampling.py` draws windows from one clip, `pipeline.py` makes batches of them. `tfds_builder.py`
writes ArrayRecords.
"""
