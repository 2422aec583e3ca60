"""A clip's full ±15 scan on the CPU: this package beside PyTorch, in turns in one process, float32.

    pip install torch && python -m benchmarks.scan [--models=student,teacher,box] [--repeats=5] [--nocompile]

Milliseconds per frame (= window of 5 frames against the sound at 31 shifts):
  MTD-JAX               `Scorer` on a whole clip, spectrogram included
  PyTorch, published    the network on each of the 31 pairs, both encoders again for every pair
  PyTorch, once         every window encoded once, the transformers on the 31 pairs; the spectrogram not included
  PyTorch, once, compiled   the same through torch.compile with frozen weights
  PyTorch, once, compiled, channels last   the same with the video's convolutions in channels_last_3d
All have the same random weights; the largest difference of their scores to ours is printed. Both libraries get as
many threads as the process has cores. Where other work keeps the cores busy, only the CPU time on one core
(`taskset -c 0`) means something: PyTorch's threads wait for each other, and count that as work.
"""

import copy
import functools
import time

import numpy as np
from absl import flags

from benchmarks.common import machine, print_results, run_benchmark, summarize, versions, warn_if_busy
from mtd_jax.errors import UserError
from mtd_jax.workers import usable_cores

NAMES = ("student", "teacher", "box")
MODELS = flags.DEFINE_list("models", ["student", "teacher"], "Which networks; box: the included one.")
flags.register_validator("models", lambda names: names and set(names) <= set(NAMES), f"of {', '.join(NAMES)}")
REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds; a round times every way once.", lower_bound=1)
WINDOWS = flags.DEFINE_integer("windows", 40, "Windows of the clip, at least 35.", lower_bound=35)
COMPILE = flags.DEFINE_bool("compile", True, "Also time torch.compile, which takes minutes to compile.")
TOGETHER = flags.DEFINE_integer("together", 4, "Windows that PyTorch encodes at once.", lower_bound=1)
SHIFT = 15


def main():
    import jax

    from mtd_jax import compilation
    from mtd_jax.box import load_box
    from mtd_jax.network.mel import log_mel
    from mtd_jax.network.model import ModelConfig, SyncModel
    from mtd_jax.scoring import Scorer

    if TOGETHER.value > WINDOWS.value - 2 * SHIFT:
        raise UserError(f"--together={TOGETHER.value}: expected at most --windows - {2 * SHIFT}")
    jax.config.update("jax_platforms", "cpu")
    compilation.prepare()
    configs = {
        "student": ModelConfig.mtd_vocalist(),
        "teacher": ModelConfig.vocalist(),
        "box": load_box().config,
    }
    rng = np.random.default_rng(0)
    count = WINDOWS.value
    frames = rng.integers(0, 256, (count + 5, 48, 96, 3), dtype=np.uint8)
    waveform = rng.integers(-20_000, 20_000, (count + 5) * 640).astype(np.int16)
    mel = np.asarray(log_mel(waveform))
    mel_windows = np.stack([mel[i * 16 // 5 : i * 16 // 5 + 16] for i in range(count)])
    video_windows = np.stack([frames[i : i + 5] for i in range(count)])
    warn_if_busy()
    results = {
        "benchmark": "scan",
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "torch"),
        "settings": {
            "windows": count,
            "repeats": REPEATS.value,
            "together": TOGETHER.value,
            "compile": COMPILE.value,
        },
    }
    rows = []
    for name in MODELS.value:
        model = SyncModel(configs[name], seed=0)
        ways = {"MTD-JAX": (functools.partial(Scorer(model), frames, waveform), count)}
        ways |= torch_ways(model, video_windows, mel_windows)
        results[name] = compare(ways)
        base = results[name]["MTD-JAX"]
        for way, found in results[name].items():
            wall, cpu = found["wall"], found["cpu"]
            difference = f"{found['difference']:.1e}" if "difference" in found else ""
            rows.append(
                [
                    f"{name}: {way}",
                    f"{wall['median']:.1f} ({wall['low']:.1f}–{wall['high']:.1f})",
                    f"{wall['median'] / base['wall']['median']:.1f}",
                    f"{cpu['median']:.1f} ({cpu['low']:.1f}–{cpu['high']:.1f})",
                    f"{cpu['median'] / base['cpu']['median']:.1f}",
                    difference,
                ]
            )
    results["load_average_after"] = machine()["load_average"]
    columns = ["ms a frame", "× ours", "CPU ms a frame", "× ours", "largest difference"]
    print_results("±15 scan of a clip, float32", columns, rows, results)


def compare(ways: dict) -> dict:
    """Runs every way once untimed, then all in turns. Args: {name: (function, frames that it scores)}."""
    scores = {name: np.asarray(run()) for name, (run, _) in ways.items()}
    wall, cpu = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(REPEATS.value):
        for name, (run, frames) in ways.items():
            started = time.perf_counter(), time.process_time()
            run()
            ended = time.perf_counter(), time.process_time()
            wall[name].append(1e3 * (ended[0] - started[0]) / frames)
            cpu[name].append(1e3 * (ended[1] - started[1]) / frames)
    results = {name: {"wall": summarize(wall[name]), "cpu": summarize(cpu[name])} for name in ways}
    ours = scores.pop("MTD-JAX")
    for name, other in scores.items():
        results[name]["difference"] = float(np.abs(ours[SHIFT : SHIFT + len(other)] - other).max())
    return results


def torch_ways(model, video_windows, mel_windows) -> dict:
    """The ways of PyTorch, each (function → scores (frames, 31), frames), with the weights of `model`."""
    import torch

    from converters.verify import twin_of
    from mtd_jax.network.weights import model_arrays
    from mtd_jax.released.key_table import to_torch

    torch.set_num_threads(usable_cores())
    arrays = {name: np.asarray(array) for name, array in model_arrays(model).items()}
    twin = twin_of(model.config)
    entries = to_torch(model.config, arrays, "model")
    twin.load_state_dict({key: torch.tensor(value) for key, value in entries.items()})
    video, mel = torch.from_numpy(video_windows), torch.from_numpy(mel_windows)
    count = TOGETHER.value  # windows, from SHIFT on, that are scored; the published way scores the first

    @torch.inference_mode()
    def published():
        # Audio windows of the first frame; the next one's begin one later.
        return twin(video[SHIFT].expand(2 * SHIFT + 1, -1, -1, -1, -1), mel[: 2 * SHIFT + 1])[0][None]

    def once(network, compiled):
        def encode_video(frames):
            return network.vid_prenet(network.scale_pixels(frames)).flatten(2).mT

        def encode_audio(mel):
            return network.aud_prenet(mel.mT[:, None]).squeeze(2).mT

        def compare_pairs(video, audio):
            av, va = network.av_transformer(audio, video)[0], network.va_transformer(video, audio)[0]
            fusion = network.mem_transformer(av, va)[0]
            return network.classifier(torch.tanh(network.fc(fusion.amax(1)))).squeeze(-1)

        with torch.inference_mode():
            other_audio = encode_audio(mel[: count + 2 * SHIFT])
        if compiled:
            parts = encode_video, encode_audio, compare_pairs
            encode_video, encode_audio, compare_pairs = (torch.compile(part, dynamic=False) for part in parts)

        @torch.inference_mode()
        def run():
            tokens = encode_video(video[SHIFT : SHIFT + count])
            audio = torch.cat([encode_audio(mel[:count]), other_audio[count:]])
            pairs = [audio[i : i + 2 * SHIFT + 1] for i in range(count)]
            repeated = [tokens[i].expand(2 * SHIFT + 1, -1, -1) for i in range(count)]
            return torch.stack([compare_pairs(*pair) for pair in zip(repeated, pairs, strict=True)])

        return run, count

    ways = {"PyTorch, published": (published, 1), "PyTorch, once": once(twin, compiled=False)}
    if COMPILE.value:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        torch._dynamo.reset()
        ways["PyTorch, once, compiled"] = once(twin, compiled=True)
        channels_last = copy.deepcopy(twin)
        channels_last.vid_prenet.to(memory_format=torch.channels_last_3d)
        ways["PyTorch, once, compiled, channels last"] = once(channels_last, compiled=True)
    return ways


if __name__ == "__main__":
    run_benchmark(main)
