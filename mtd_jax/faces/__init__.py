"""Faces in a video: where they are, and the crops that the network sees.

In: an open video (`mtd_jax.video`) and a face detector, or boxes from a file.
Out: face tracks, each one face through one shot, and for each track a `Clip` of its mouth region and the audio.

Start with `search.py`: one pass over the pictures runs the detector (`detect.py`) on some of them, splits at shot
changes (`shots.py`) and follows each face (`tracks.py`). `clips.py` crops (`crop.py`) the faces in the same pass.
`boxes.py` reads boxes of the user's own.
"""
