"""Synthetic talking faces: data for the demo, the tests and the benchmarks, made from a seed alone.

In: a seed, a number of clips and their length.
Out: clips whose lips and voice follow the same utterance, in memory or as a corpus on disk in the LRS2 layout.

Start with `clips.py`, which makes one clip: `speech.py` invents an utterance, `voice.py` makes it audible, and
`face.py`, `mouth.py` and `render.py` draw it. `corpus.py` writes a whole corpus. Pure NumPy, no JAX.
"""
