"""`--mode=export`: a model for programs without JAX, as ONNX graphs, and as StableHLO; checked against JAX.

Both come in three parts, because a scan encodes every window once and compares it many times (docs/deploy.md).
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Float, UInt8

import mtd_jax
from mtd_jax.data.clip import FPS, SAMPLES_PER_FRAME, Clip
from mtd_jax.errors import UserError
from mtd_jax.faces.clips import face_clips
from mtd_jax.faces.detect import load_detector
from mtd_jax.models import describe, load_model, local
from mtd_jax.network.folded import fold
from mtd_jax.network.mel import HOP, MEL_SETTINGS, N_FFT, log_mel_of_padded
from mtd_jax.network.model import SyncModel
from mtd_jax.network.weights import computing_in
from mtd_jax.scoring import mel_steps
from mtd_jax.storage import atomic
from mtd_jax.synthetic.clips import synthetic_clip
from mtd_jax.video.decode import open_video

PARTS = ("video", "audio", "comparison")
_PLATFORMS = ("cpu", "cuda", "tpu")
_TOLERATED = 1e-4  # largest difference from JAX, as a share of the largest value
_WINDOWS = 12
_APART = 7  # frames between them, so that there is no pattern in common with mel columns
_OFFSET = 5  # frames; every window is compared with the audio of its own and with audio so much later


@dataclasses.dataclass(frozen=True)
class Windows:
    """Inputs to compare results on.

    Attributes:
      frames: windows of T frames.
      samples: of the same time, from 400 samples before to 200 after; in [−1, 1).
      source: where they are from, in words.
    """

    frames: UInt8[np.ndarray, "n T 48 96 3"]
    samples: Float[np.ndarray, "n samples"]
    source: str


def export(
    checkpoint: str | os.PathLike | None,
    output: str | os.PathLike,
    video: str | os.PathLike | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Writes a folder with video, audio and comparison as .onnx and as .stablehlo, and model.json.

    Args:
      checkpoint: as for `load_model`; None: the included model.
      output: the folder, which must not exist yet.
      video: of a talking face, to compare results on; None: a synthetic one.

    Returns:
      What model.json holds.

    Raises:
      UserError: there is no such model or video, the folder exists, or results differ from JAX by more than 1e-4.
    """
    if Path(output).exists():
        raise UserError(f"{output} exists already; name a new folder")
    checkpoint = None if checkpoint is None else local(checkpoint)  # once, as it may have to be converted
    model = computing_in("float32", load_model(checkpoint))
    windows = windows_of(model.config.window_frames, video)
    with atomic(output) as scratch:
        folder = Path(scratch)
        folder.mkdir(parents=True)
        described = _description(describe(checkpoint), model)
        _write_onnx(folder, model, described)
        _write_stablehlo(folder, model)
        described["differences"] = differences = {
            "windows": f"{len(windows.frames)} windows of {windows.source}",
            "onnx": compare(model, windows, _run_onnx(folder)),
            "stablehlo": compare(model, windows, _run_stablehlo(folder)),
        }
        for kind in ("onnx", "stablehlo"):
            if not all(share <= _TOLERATED for share in differences[kind].values()):  # NaN, too
                raise UserError(
                    f"{output} was not written: as {kind} the results differ from JAX by {differences[kind]}, "
                    f"shares of the largest value; expected at most {_TOLERATED}"
                )
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        (folder / "model.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    listed = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    report(f"wrote {output}: model.json, {listed}")
    report(f"largest difference from JAX on {differences['windows']}, as a share of the largest value:")
    for kind in ("onnx", "stablehlo"):
        report(f"  {kind}: " + ", ".join(f"{part} {value:.1e}" for part, value in differences[kind].items()))
    return described


def windows_of(time: int, video: str | os.PathLike | None = None) -> Windows:
    """Windows of T frames of a video, or of a synthetic one. Raises `UserError` if its faces are too short."""
    if video is None:
        clip, source = synthetic_clip(seed=0, speaker=1, index=0), "a synthetic face"
    else:
        clip, source = _longest_face(video), str(video)
    sound = clip.waveform[: clip.num_frames * SAMPLES_PER_FRAME].astype(np.float32) / 32768
    last = clip.num_frames - time - 1  # whose audio is there up to 200 samples beyond it
    starts = np.arange(1, last, max(min(_APART, (last - 1) // _WINDOWS), 1))[:_WINDOWS]
    if len(starts) <= _OFFSET:
        raise UserError(f"{source}: its longest face has {clip.num_frames / FPS:.1f} s; expected at least 1 s")
    count = (mel_steps(time) - 1) * HOP + N_FFT
    return Windows(
        np.stack([clip.frames[start : start + time] for start in starts]),
        np.stack([sound[start:][:count] for start in starts * SAMPLES_PER_FRAME - N_FFT // 2]),
        source,
    )


def compare(model: SyncModel, windows: Windows, run: Callable[..., np.ndarray]) -> dict[str, float]:
    """The largest difference of each part from JAX, as a share of JAX's largest value.

    Args: run: (part, *inputs) → outputs.
    """
    functions = {part: jax.jit(function) for part, function in _functions(model).items()}
    expected, found = (_chain(windows, call) for call in (lambda part, *xs: np.asarray(functions[part](*xs)), run))
    return {part: _share(found[part], expected[part]) for part in PARTS}


def _chain(windows: Windows, run: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
    """Results of all parts, each from those before it: every window with its own audio, and with later audio."""
    video, audio = run("video", windows.frames), run("audio", windows.samples)
    own = np.arange(len(video))
    later = (own + _OFFSET) % len(own)
    logits = run("comparison", np.concatenate([video, video]), audio[np.concatenate([own, later])])
    return {"video": video, "audio": audio, "comparison": logits}


def _share(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        raise UserError(f"an exported part gives {found.shape} where JAX gives {expected.shape}")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _longest_face(video: str | os.PathLike) -> Clip:
    opened = open_video(video)
    clips, _ = face_clips(opened, load_detector("mtcnn"))
    if not clips:
        raise UserError(f"{video}: no face was found")
    return max((found.clip for found in clips), key=lambda clip: clip.num_frames)


def _description(checkpoint: dict[str, Any], model: SyncModel) -> dict[str, Any]:
    config, steps = model.config, mel_steps(model.config.window_frames)
    tokens = config.window_frames if config.fusion == "none" else steps
    return {
        "mtd_jax": mtd_jax.__version__,
        "source": checkpoint.get("name") or checkpoint["source"],
        "licence": checkpoint["licence"],
        "step": checkpoint["step"],
        "pixels": f"RGB in [0, 255]; the graphs apply the weights' own convention, {config.pixels}",
        "window_frames": config.window_frames,
        "frames_per_second": FPS,
        "mel": MEL_SETTINGS,
        "parts": {
            "video": {
                "frames": f"uint8 (batch, {config.window_frames}, 48, 96, 3), lower halves of 96×96 faces",
                "tokens": f"float32 (batch, {config.window_frames}, {config.width})",
            },
            "audio": {
                "samples": f"float32 (batch, {(steps - 1) * HOP + N_FFT}), 16 kHz in [−1, 1), "
                "from 400 samples before the window to 200 after it",
                "tokens": f"float32 (batch, {tokens}, {config.width})",
            },
            "comparison": {
                "video, audio": "tokens of as many windows each",
                "logits": "float32 (batch,), positive = in sync",
            },
        },
    }


def _write_onnx(folder: Path, model: SyncModel, described: dict[str, Any]) -> None:
    from mtd_jax.network import onnx_graph

    config, weights, steps = model.config, fold(model), mel_steps(model.config.window_frames)
    metadata = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in described.items()
    }
    graphs = {
        "video": onnx_graph.video_graph(config, weights, metadata),
        "audio": onnx_graph.audio_graph(config, weights, steps, metadata),
        "comparison": onnx_graph.comparison_graph(config, weights, steps, metadata),
    }
    for part, graph in graphs.items():
        (folder / f"{part}.onnx").write_bytes(graph.SerializeToString())


def _write_stablehlo(folder: Path, model: SyncModel) -> None:
    """With `jax.export`: the same for CPU, CUDA and TPU, with a batch of any size."""
    functions = _functions(model)
    config, steps = model.config, mel_steps(model.config.window_frames)
    (batch,) = jax_export.symbolic_shape("batch")
    tokens = config.window_frames if config.fusion == "none" else steps
    video = jax.ShapeDtypeStruct((batch, config.window_frames, config.width), jnp.float32)
    audio = jax.ShapeDtypeStruct((batch, tokens, config.width), jnp.float32)
    inputs = {
        "video": [jax.ShapeDtypeStruct((batch, config.window_frames, 48, 96, 3), jnp.uint8)],
        "audio": [jax.ShapeDtypeStruct((batch, (steps - 1) * HOP + N_FFT), jnp.float32)],
        "comparison": [video, audio],
    }
    for part in PARTS:
        exported = jax_export.export(jax.jit(functions[part]), platforms=_PLATFORMS)(*inputs[part])
        (folder / f"{part}.stablehlo").write_bytes(exported.serialize())


def _functions(model: SyncModel) -> dict[str, Callable[..., jax.Array]]:
    def video(frames):
        return model.encode_video(frames)

    def audio(samples):
        return model.encode_audio(log_mel_of_padded(samples))

    def comparison(video, audio):
        return model.compare(video, audio)[0]

    if model.config.fusion != "none":
        return {"video": video, "audio": audio, "comparison": comparison}
    towers = model.towers
    return {
        "video": lambda frames: towers.video_vectors(video(frames)),
        "audio": lambda samples: towers.audio_vectors(audio(samples), model.config.window_frames),
        "comparison": towers.compare,
    }


def _run_onnx(folder: Path) -> Callable[..., np.ndarray]:
    import onnxruntime

    sessions = {
        part: onnxruntime.InferenceSession(folder / f"{part}.onnx", providers=["CPUExecutionProvider"])
        for part in PARTS
    }

    def run(part: str, *inputs: np.ndarray) -> np.ndarray:
        names = [known.name for known in sessions[part].get_inputs()]
        (output,) = sessions[part].run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))
        return np.asarray(output)

    return run


def _run_stablehlo(folder: Path) -> Callable[..., np.ndarray]:
    read = {part: jax_export.deserialize(bytearray((folder / f"{part}.stablehlo").read_bytes())) for part in PARTS}
    return lambda part, *inputs: np.asarray(read[part].call(*inputs))
