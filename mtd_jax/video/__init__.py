"""Reads and writes video files through PyAV. Imports no JAX.

In: the path of any file that FFmpeg can open.
Out: frames at 25 fps and mono audio at 16 kHz on one clock, the container's time stamps; and .mp4 files with audio
aligned to the sample.

Start with `decode.py` (frames), then `audio.py`. `container.py` opens files and turns FFmpeg's errors into one
clear line; `write.py` writes .mp4; `stream.py` keeps the last seconds of what does not end.
"""
