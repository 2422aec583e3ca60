"""The video encoder in other runtimes: float32 and int8, in turns in one process.

    pip install '.[export]' openvino && python -m benchmarks.deploy [--models=student,box] [--video=talk.mp4]

Milliseconds per window of 5 frames; ten windows, each a frame after the last, as a scan reads them:
  MTD-JAX               XLA, as `Scorer` calls it: what two windows have in common is computed once
  ONNX Runtime          the graph of --mode=export, window by window
  ONNX Runtime, int8    its convolutions quantised (static, per channel, calibrated on the windows of the video)
  OpenVINO, and int8    the same two files

Difference: root mean square of the tokens' difference from MTD-JAX, as a share of their root mean square. All get
as many threads as the process has cores: `taskset -c 0` times one core.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.common import in_turns, machine, print_results, run_benchmark, summarize, versions, warn_if_busy
from mtd_jax.workers import usable_cores

NAMES = ("student", "teacher", "box")
MODELS = flags.DEFINE_list("models", ["student", "box"], "Which networks; box: the included one.")
flags.register_validator("models", lambda names: names and set(names) <= set(NAMES), f"of {', '.join(NAMES)}")
VIDEO = flags.DEFINE_string("video", None, "Of a talking face, to calibrate and compare on. [a synthetic one]")
REPEATS = flags.DEFINE_integer("repeats", 7, "Rounds; a round times every way once.", lower_bound=1)
COUNT = 10  # windows


def main():
    import jax

    from mtd_jax import compilation
    from mtd_jax.box import load_box
    from mtd_jax.export import windows_of
    from mtd_jax.network.model import ModelConfig, SyncModel

    jax.config.update("jax_platforms", "cpu")
    compilation.prepare()
    models = {
        "student": lambda: SyncModel(ModelConfig.mtd_vocalist(), seed=0),
        "teacher": lambda: SyncModel(ModelConfig.vocalist(), seed=0),
        "box": load_box,
    }
    windows = windows_of(5, VIDEO.value)
    warn_if_busy()
    results = {
        "benchmark": "deploy",
        "machine": machine(),
        "versions": versions("jax", "onnxruntime", "openvino"),
        "windows": windows.source,
    }
    rows = []
    for name in MODELS.value:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = compare(ways(models[name](), windows.frames, Path(folder)))
        base = results[name]["MTD-JAX"]["milliseconds"]["median"]
        for way, found in results[name].items():
            spent = found["milliseconds"]
            rows.append(
                [
                    f"{name}: {way}",
                    f"{spent['median']:.1f} ({spent['low']:.1f}–{spent['high']:.1f})",
                    f"{spent['median'] / base:.2f}",
                    f"{found['difference']:.1e}",
                ]
            )
    results["load_average_after"] = machine()["load_average"]
    print_results("video encoder", ["ms a window", "× ours", "difference"], rows, results)


def compare(ways: dict[str, Callable[[], np.ndarray]]) -> dict:
    """Runs every way once untimed, then all in turns. Args: ways: the first one is ours."""
    tokens = {name: np.asarray(run()) for name, run in ways.items()}
    spent = in_turns(ways, REPEATS.value)
    ours = next(iter(tokens.values()))
    size = np.sqrt(np.mean(np.square(ours)))
    return {
        name: {
            "milliseconds": summarize(1e3 * np.array(spent[name]) / COUNT),
            "difference": float(np.sqrt(np.mean(np.square(tokens[name] - ours))) / size),
        }
        for name in ways
    }


def ways(model, calibration: np.ndarray, folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Each way: a call that gives the tokens of ten windows."""
    import jax
    import onnxruntime
    import openvino  # pyright: ignore[reportMissingImports]

    from mtd_jax.network import onnx_graph
    from mtd_jax.network.folded import fold
    from mtd_jax.scoring import Chunks, _encode_frames

    config, folded = model.config, fold(model)
    weights = jax.device_put(folded)
    long = np.concatenate(list(calibration))[: COUNT + config.window_frames - 1]
    windows = [long[None, start : start + config.window_frames] for start in range(COUNT)]
    full, small = folder / "float32.onnx", folder / "int8.onnx"
    full.write_bytes(onnx_graph.video_graph(config, folded, {}).SerializeToString())
    quantise(full, small, calibration)
    threads = usable_cores()

    def ours() -> np.ndarray:
        chunks = Chunks.best_for("cpu")._replace(encoded=COUNT)
        return np.asarray(_encode_frames(config, chunks, 1, weights, long))

    def with_onnx_runtime(path: Path) -> Callable[[], np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: np.concatenate([np.asarray(session.run(None, {"frames": w})[0]) for w in windows])

    def with_openvino(path: Path) -> Callable[[], np.ndarray]:
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        settings |= {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        return lambda: np.concatenate([np.asarray(compiled(w)[0]) for w in windows])

    return {
        "MTD-JAX": ours,
        "ONNX Runtime": with_onnx_runtime(full),
        "ONNX Runtime, int8": with_onnx_runtime(small),
        "OpenVINO": with_openvino(full),
        "OpenVINO, int8": with_openvino(small),
    }


def quantise(source: Path, target: Path, windows: np.ndarray) -> None:
    """Convolutions in int8: weights per channel, activations by their range on these windows."""
    from onnxruntime import quantization

    class Windows(quantization.CalibrationDataReader):
        def __init__(self):
            self._left = iter(windows)

        def get_next(self) -> dict:
            window = next(self._left, None)
            return {} if window is None else {"frames": window[None]}

    prepared = target.with_suffix(".prepared.onnx")
    quantization.quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        target,
        Windows(),
        per_channel=True,
        op_types_to_quantize=["Conv"],
        weight_type=quantization.QuantType.QInt8,
    )


if __name__ == "__main__":
    run_benchmark(main)
