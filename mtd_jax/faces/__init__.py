"""Faces in a video: where they are, and the crops that the network sees.

In: an open video (`mtd_jax.video`) and a face detector, or boxes from a file.
Out: face tracks, each one face through one shot, and for each track a `Clip` of its mouth region and the audio.

Start with `search.py`, the first pass over a video: it runs the detector (`detect.py`) or reads boxes
(`boxes.py`), splits at shot changes (`shots.py`) and joins boxes into tracks (`tracks.py`). `clips.py` is the
second pass, which crops (`crop.py`) each track.
"""
