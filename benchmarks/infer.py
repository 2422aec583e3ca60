"""Where the time of `--mode=infer` goes, and how much memory it takes: every video in new processes, in turns.

    python -m benchmarks.infer --checkpoint=workdir/student_mtd --video=talk.mp4
    python -m benchmarks.infer --checkpoint=workdir/student_mtd --film_seconds=10,20 --film_height=720 --repeats=3

The second form films a synthetic speaker first, for each length. A run of each before the timed ones fills the
cache of compiled programs; with --cold every run has an empty one.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.common import print_results, run_benchmark, summarize, warn_if_busy
from benchmarks.film import film
from mtd_jax.errors import UserError

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint directory.", required=True)
VIDEOS = flags.DEFINE_list("video", [], "Videos; without them some are filmed.")
FILM_SECONDS = flags.DEFINE_list("film_seconds", ["10"], "Lengths of the films.")
flags.register_validator(
    "film_seconds",
    lambda found: found and all(1 <= _seconds(length) <= 36_000 for length in found),
    "numbers from 1 to 36000",
)
FILM_HEIGHT = flags.DEFINE_integer("film_height", 720, "Their height in pixels; 16:9.", lower_bound=64)
flags.register_validator("film_height", lambda height: height % 2 == 0, "an even number")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each.", lower_bound=1)
THOROUGH = flags.DEFINE_bool("thorough", False, "Score every window of the whole film.")
AS_IF_SURE = flags.DEFINE_bool("as_if_sure", False, "As in `infer_once`.")
COLD = flags.DEFINE_bool("cold", False, "Compile everything anew in every run.")
WHOLE = "the whole process"


def main():
    warn_if_busy()
    with tempfile.TemporaryDirectory() as folder:
        lengths = dict.fromkeys(map(_seconds, [] if VIDEOS.value else FILM_SECONDS.value))
        films = [str(film(Path(folder), length, FILM_HEIGHT.value)) for length in lengths]
        videos = list(dict.fromkeys(VIDEOS.value)) or films
        if not COLD.value:
            for video in videos:
                measure(video)
        runs = {video: [] for video in videos}
        for _ in range(REPEATS.value):
            for video in videos:
                runs[video].append(measure(video))
                print(f"{Path(video).name}: {runs[video][-1]['seconds'][WHOLE]:.1f} s", flush=True)
    first = runs[videos[0]][0]
    stages = {
        video: {name: summarize([run["seconds"][name] for run in found]) for name in first["seconds"]}
        for video, found in runs.items()
    }
    rows = [
        [name, *(f"{s['median']:.2f} ({s['low']:.2f}–{s['high']:.2f})" for s in (stages[v][name] for v in videos))]
        for name in first["seconds"]
    ]
    programs = [np.median([run["program_seconds"] for run in runs[video]]) for video in videos]
    rows.append(
        ["of all this: tracing, lowering, fetching or compiling programs", *(f"{s:.2f}" for s in programs)]
    )
    others = {"windows": "windows", "peak_mb": "peak memory, MB", "programs": "programs, compiled or loaded"}
    others |= {"programs_from_cache": "of them from the cache", "programs_put_into_cache": "of them put there"}
    for name, title in others.items():
        rows.append([title, *(f"{np.median([run[name] for run in runs[video]]):.0f}" for video in videos)])
    results = {
        "benchmark": "infer",
        "machine": first["machine"],
        "versions": first["versions"],
        "settings": {"checkpoint": CHECKPOINT.value, "repeats": REPEATS.value, "cold": COLD.value},
        "stages": stages,
        "runs": runs,
    }
    if len({run["windows"] for found in runs.values() for run in found}) > 1:
        results["fixed_seconds"], results["seconds_a_window"] = line(runs)
        print(
            f"a line through the medians: {results['fixed_seconds']:.1f} s whatever the length, "
            f"and {1e3 * results['seconds_a_window']:.1f} ms a window"
        )
    print_results("infer, seconds", [Path(video).name for video in videos], rows, results)


def measure(video: str) -> dict:
    """`infer_once` of the video in a new process, which is timed from outside as well."""
    with contextlib.ExitStack() as stack:
        env = dict(os.environ)
        if COLD.value:
            env.pop("JAX_COMPILATION_CACHE_DIR", None)
            env["XDG_CACHE_HOME"] = stack.enter_context(tempfile.TemporaryDirectory())
        command = ["-m", "benchmarks.infer_once", f"--checkpoint={CHECKPOINT.value}", f"--video={video}"]
        command += ["--thorough"] if THOROUGH.value else []
        command += ["--as_if_sure"] if AS_IF_SURE.value else []
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env)
        seconds = time.perf_counter() - started
    if done.returncode:
        raise UserError((done.stderr.strip().splitlines() or ["no output"])[-1].removeprefix("error: "))
    found = json.loads(done.stdout.splitlines()[-1])
    found["seconds"][WHOLE] = seconds
    return found


def line(runs: dict) -> tuple[float, float]:
    """(seconds whatever the length, seconds a window): least squares through the medians of the whole process."""
    windows = [found[0]["windows"] for found in runs.values()]
    seconds = [np.median([run["seconds"][WHOLE] for run in found]) for found in runs.values()]
    slope, fixed = np.polyfit(windows, seconds, 1)
    return float(fixed), float(slope)


def _seconds(length: str) -> float:
    """NaN, which fails every comparison, for what is no number."""
    try:
        return float(length)
    except ValueError:
        return float("nan")


if __name__ == "__main__":
    run_benchmark(main)
