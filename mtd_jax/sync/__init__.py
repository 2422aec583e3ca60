"""One video: is its audio in sync, and if not, by how much, and a copy that is.

In: a model and a video file of any kind. Out: a `Result` (offset, confidence, drift per face), as text, JSON or an
HTML page, and a copy of the video with its audio moved.

Read `detect.py` first (file → `Result`), then `verdict.py` (scores → offset and confidence). `report.py` draws the
page; `fix.py` moves the audio with one FFmpeg command (`ffmpeg.py` runs it, `compare.py` checks the copy);
`command.py` is `--mode=infer`, `live.py` the same for streams; `score.py` and `score_command.py` are
`--mode=score`.
"""
