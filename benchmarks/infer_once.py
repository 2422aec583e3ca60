"""One video through `detect_offset` in this process, timed by stage from before the imports: `infer.py`'s child.

    python -m benchmarks.infer_once --checkpoint=workdir/student_mtd --video=talk.mp4

Prints one line of JSON.
"""

import time

STARTED = time.perf_counter()  # before the imports, which are part of what a user waits for

import collections  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402

from absl import flags  # noqa: E402

from benchmarks.common import machine, run_benchmark, versions  # noqa: E402

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint directory.", required=True)
VIDEO = flags.DEFINE_string("video", None, "The video.", required=True)
THOROUGH = flags.DEFINE_bool("thorough", False, "Score every window of the whole film.")
AS_IF_SURE = flags.DEFINE_bool(
    "as_if_sure",
    False,
    "Do what follows a sure verdict, which random weights never give.",
)

PARTS_OF_COMPILING = ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")  # the last one fetches, too


class TimedDetector:
    """A face detector that notes its own time."""

    def __init__(self, detector):
        self.detector, self.seconds, self.pictures = detector, 0.0, 0

    def detect(self, frames):
        return self._timed(self.detector.detect, frames)

    def detect_close_up(self, frames):
        return self._timed(self.detector.detect_close_up, frames)

    def _timed(self, detect, frames):
        started = time.perf_counter()
        found = detect(frames)
        self.seconds += time.perf_counter() - started
        self.pictures += len(frames)
        return found


def main():
    import jax

    from mtd_jax import compilation
    from mtd_jax.checkpoint import load_model
    from mtd_jax.faces.detect import Mtcnn
    from mtd_jax.scoring import Scorer
    from mtd_jax.sync import detect, sample
    from mtd_jax.sync.detect import detect_offset

    class TimedScorer(Scorer):
        """A scorer that notes its own time."""

        seconds = 0.0

        def scan(self, *arguments, **options):
            return self._timed(super().scan, *arguments, **options)

        def compare_columns(self, *arguments):
            return self._timed(super().compare_columns, *arguments)

        def _timed(self, call, *arguments, **options):
            started = time.perf_counter()
            found = call(*arguments, **options)
            self.seconds += time.perf_counter() - started
            return found

    compilation.prepare()
    events = collections.Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
    making = collections.Counter()  # seconds of a thread, by what JAX did to get a program
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: making.update({event: duration_secs})
    )
    if AS_IF_SURE.value:
        detect.CONFIDENT, sample.MOST = 0.0, sample.FIRST
    imported = time.perf_counter()
    scorer = TimedScorer(load_model(CHECKPOINT.value))
    detector = TimedDetector(Mtcnn())
    loaded = time.perf_counter()
    result = detect_offset(scorer, VIDEO.value, faces=detector, thorough=THOROUGH.value)
    measuring = time.perf_counter() - loaded
    found = {
        "seconds": {
            "imports": imported - STARTED,
            "load the model and the detector": loaded - imported,
            "find faces": detector.seconds,
            "score (programs included)": scorer.seconds,
            "decode, shot cuts, crop, judge": measuring - detector.seconds - scorer.seconds,
        },
        "program_seconds": sum(making[f"/jax/core/compile/{part}_duration"] for part in PARTS_OF_COMPILING),
        "windows": sum(len(track.scores.starts) for track in result.tracks),
        "tracks": len(result.tracks),
        "sampled": result.sampled,
        "verdict": result.verdict,
        "offset_seconds": result.offset_seconds,
        "confidence": result.confidence,
        "pictures_searched": detector.pictures,
        "programs": events["/jax/compilation_cache/compile_requests_use_cache"],
        "programs_from_cache": events["/jax/compilation_cache/cache_hits"],
        "programs_put_into_cache": events["/jax/compilation_cache/cache_misses"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "av", "opencv-python-headless"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    run_benchmark(main)
