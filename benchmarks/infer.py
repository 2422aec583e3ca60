"""Where the time of `--mode=infer` goes, and how much memory it takes, for one video in a new process.

    python -m benchmarks.infer --checkpoint=workdir/student_mtd --video=talk.mp4
    python -m benchmarks.infer --checkpoint=workdir/student_mtd --film_seconds=600 --film_height=720

The second form films a synthetic speaker first.
"""

import time

STARTED = time.perf_counter()  # before the imports, which are part of what a user waits for

import json  # noqa: E402
import resource  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from absl import flags  # noqa: E402

from benchmarks.common import machine, run_benchmark, versions  # noqa: E402

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint directory.", required=True)
VIDEO = flags.DEFINE_string("video", None, "The video; without it one is filmed.")
FILM_SECONDS = flags.DEFINE_float("film_seconds", 10.0, "Length of the film.", lower_bound=1.0)
FILM_HEIGHT = flags.DEFINE_integer("film_height", 720, "Its height in pixels; 16:9.", lower_bound=64)
FILM_LOOP = 60.0  # seconds of a speaker that a longer film repeats


def main():
    from mtd_jax import platform
    from mtd_jax.checkpoint import load_model
    from mtd_jax.infer import detect_offset
    from mtd_jax.media.faces import Mtcnn

    class TimedDetector:
        def __init__(self):
            self.detector, self.seconds, self.pictures = Mtcnn(), 0.0, 0

        def detect(self, frames):
            started = time.perf_counter()
            found = self.detector.detect(frames)
            self.seconds += time.perf_counter() - started
            self.pictures += len(frames)
            return found

    platform.prepare()
    imported = time.perf_counter()
    model = load_model(CHECKPOINT.value)
    detector = TimedDetector()
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        video = VIDEO.value or film(Path(folder) / "film.mp4")
        started = time.perf_counter()
        marks = {}

        def progress(what, done, total):
            """Notes when a stage was first heard of; the second pass begins at half of the first stage."""
            if what == "looking for faces" and total and done >= total / 2:
                what = "cutting out faces"
            marks.setdefault(what, time.perf_counter())

        result = detect_offset(model, video, faces=detector, progress=progress)
        ended = time.perf_counter()
    cut, scored = marks.get("cutting out faces", ended), marks.get("scoring", ended)
    seconds = {
        "imports": imported - STARTED,
        "load the model and the detector": loaded - imported,
        "pass 1: find faces": detector.seconds,
        "pass 1: decode, shot cuts": cut - started - detector.seconds,
        "pass 2: decode, crop, sound": scored - cut,
        "score (compilation included)": ended - scored,
    }
    total = sum(seconds.values())
    for name, value in seconds.items():
        print(f"{name:34} {value:8.1f} s  {value / total:4.0%}")
    frames = sum(len(track.scores) for track in result.tracks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{'all':34} {total:8.1f} s;  {frames} windows in {len(result.tracks)} tracks, peak memory {peak:.0f} MB"
    )
    results = {
        "benchmark": "infer",
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "av", "opencv-python-headless"),
        "settings": {"checkpoint": CHECKPOINT.value, "video": VIDEO.value, "film_seconds": FILM_SECONDS.value},
        "seconds": seconds,
        "windows": frames,
        "pictures_searched": detector.pictures,
        "peak_mb": peak,
    }
    print(json.dumps(results))


class Film:
    """A portrait in the middle of a wide picture, repeated; an array to `write_mp4`, made a picture at a time."""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, portraits, count: int, height: int):
        self.portraits = portraits
        self.shape = (count, height, height * 16 // 9 // 2 * 2, 3)

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        import cv2

        count, height, width, _ = self.shape
        for number in range(count):
            picture = np.full((height, width, 3), 90, np.uint8)
            left = (width - height) // 2
            face = cv2.resize(self.portraits[number % len(self.portraits)], (height, height))
            picture[:, left : left + height] = face
            yield picture


def film(path: Path) -> Path:
    from mtd_jax.data.clip import FPS
    from mtd_jax.data.synthetic import portrait, record
    from mtd_jax.media.write import write_mp4

    count = round(FILM_SECONDS.value * FPS)
    recording = record(0, 300_000, 0, min(FILM_SECONDS.value, FILM_LOOP))
    repeats = -(-count // len(recording.visemes))
    write_mp4(path, Film(portrait(recording)[0], count, FILM_HEIGHT.value), np.tile(recording.waveform, repeats))
    return path


if __name__ == "__main__":
    run_benchmark(main)
