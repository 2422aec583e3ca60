"""Any videos to training clips: `--mode=preprocess`.

In: a folder of videos, or a text file that lists them.
Out: a data set in the LRS2 layout (face crops at 25 fps, audio at 16 kHz, a list file), and a record per video, so
that an interrupted run resumes.

Start with `command.py`, which runs the whole job over many processes. `videos.py` finds the videos and names their
clips, `writer.py` turns one video into clips, `manifest.py` keeps the records and the list files.
"""
