"""Checking videos, and fixing them: `--mode=infer`.

In: a model and a video.
Out: a `Result` with the offset of each face and the confidence in it, as text, JSON or an HTML page; on request a
copy of the video with its audio moved into sync.

Start with `detect.py`, which finds the faces and scores them. `verdict.py` turns scores into offset and
confidence, `report.py` makes the page, `fix.py` the copy, and `command.py` is the command line.
"""
