"""Where the time of a clip's scan goes: the operations of a jax.profiler trace, by what the source calls them.

    python -m benchmarks.trace [--model=student] [--windows=40]     # on the CPU; for a GPU: train_step --trace

XLA fuses operations and names the result after none of them; here every one counts for the operation at its root,
as named in the compiled program. Times are by the clock of the threads that run a program, each operation without
those inside it; which operation the other threads of XLA's pool help with, the trace does not say.
"""

import collections
import os
import re
import tempfile
from pathlib import Path

# By default JAX's profiler would take libtpu in, if installed, and crash where the two do not fit together.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402

from benchmarks.common import machine, print_results, run_benchmark, versions, warn_if_busy  # noqa: E402
from mtd_jax import compilation, scoring  # noqa: E402
from mtd_jax.data.clip import SAMPLES_PER_FRAME  # noqa: E402
from mtd_jax.network.model import FRAME_SHAPE, ModelConfig, SyncModel

MODEL = flags.DEFINE_enum("model", "student", ["student", "teacher"], "Which network.")
WINDOWS = flags.DEFINE_integer("windows", 40, "Windows of the clip: whole chunks.", lower_bound=10)
flags.register_validator("windows", lambda count: count % 10 == 0, "a multiple of 10, the windows of a chunk")
TOP = flags.DEFINE_integer("top", 12, "Rows to print.", lower_bound=1)

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?metadata=\{.*?op_name=\"([^\"]*)\"", re.MULTILINE)


def named_operations(program: str) -> dict[tuple[str, str], str]:
    """{(program, instruction): what the source calls it, such as "nrm,nmc->nrc/dot_general"}, of compiled text."""
    module = re.match(r"\s*HloModule ([\w.-]+)", program)[1]
    bare = re.compile(r"^jit\(\w+\)/|while/body/|closed_call/")
    return {(module, name): bare.sub("", source) for name, source in _INSTRUCTION.findall(program)}


def self_milliseconds(events) -> collections.Counter:
    """{event: time in it but not in events inside it} of a thread. Args: events: (name, start, duration) in ns."""
    total, inside = collections.Counter(), []  # inside: (name, end) of the events that have begun
    for name, start, duration in sorted(events, key=lambda event: (event[1], -event[2])):
        while inside and inside[-1][1] <= start:
            inside.pop()
        total[name] += duration / 1e6
        if inside:
            total[inside[-1][0]] -= duration / 1e6
        inside.append((name, start + duration))
    return total


def traced_events(folder: Path):
    """((program, name), start, duration) of every event, thread by thread, Python's own left out."""
    (path,) = folder.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            if line.name != "python":
                yield [
                    ((dict(event.stats).get("hlo_module"), event.name), event.start_ns, event.duration_ns)
                    for event in line.events
                ]


def stages(model, frames, waveform) -> dict:
    """{stage: (function to trace, the compiled programs that take its time)} of a clip's scan."""
    scorer = scoring.Scorer(model)
    config, chunks, weights = scorer.config, scorer.chunks, scorer.weights
    steps = scoring.mel_steps(config.window_frames)
    tokens = scorer.encode(frames, waveform, WINDOWS.value)
    part = frames[: chunks.encoded + config.window_frames - 1]
    samples = np.zeros(chunks.samples(config.window_frames), waveform.dtype)
    video = jax.ShapeDtypeStruct((chunks.compared, config.window_frames, config.width), np.float32)
    audio = jax.ShapeDtypeStruct((chunks.compared + 2 * scoring.MAX_SHIFT, steps, config.width), np.float32)
    scorer(frames, waveform)
    return {
        "encode": (
            lambda: scorer.encode(frames, waveform, WINDOWS.value),
            [
                scoring._encode_frames.lower(config, chunks, weights, part).compile(),
                scoring._encode_audio.lower(config, chunks, weights, samples).compile(),
            ],
        ),
        "compare": (
            lambda: scorer.compare(tokens, scoring.MAX_SHIFT),
            [scoring._score_chunk.lower(config, weights, video, audio).compile()],
        ),
    }


def main():
    warn_if_busy()
    compilation.prepare()
    named = {"student": ModelConfig.mtd_vocalist, "teacher": ModelConfig.vocalist}
    model = SyncModel(named[MODEL.value](), seed=0)
    rng = np.random.default_rng(0)
    count = WINDOWS.value + model.config.window_frames
    frames = rng.integers(0, 256, (count, *FRAME_SHAPE), dtype=np.uint8)
    waveform = rng.integers(-20_000, 20_000, count * SAMPLES_PER_FRAME).astype(np.int16)
    results = {
        "benchmark": "trace",
        "machine": machine(),
        "versions": versions("jax", "jaxlib"),
        "settings": {"model": MODEL.value, "windows": WINDOWS.value},
    }
    rows = []
    for stage, (run, programs) in stages(model, frames, waveform).items():
        sources = {}
        for program in programs:
            sources |= named_operations(program.as_text())
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                run()
            total = collections.Counter()
            for events in traced_events(Path(folder)):
                for name, time in self_milliseconds(events).items():
                    if name in sources:  # the rest is scheduling, waiting and small programs
                        total[sources[name]] += time / WINDOWS.value
        results[stage] = dict(total.most_common())
        whole = total.total()
        for source, time in total.most_common(TOP.value):
            rows.append([stage, source, f"{time:.2f}", f"{time / whole:.1%}"])
    print_results("Operations of a scan, ms of a thread a window", ["operation", "ms", "share"], rows, results)


if __name__ == "__main__":
    run_benchmark(main)
