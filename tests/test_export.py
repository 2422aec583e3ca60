"""Models for programs without JAX: ONNX graphs and StableHLO give what JAX gives."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import mtd_jax
from mtd_jax import export
from mtd_jax.checkpoint import save_model
from mtd_jax.cli import run
from mtd_jax.errors import UserError
from mtd_jax.network.model import ModelConfig, SyncModel
from mtd_jax.network.weights import bind, model_arrays
from mtd_jax.synthetic.clips import synthetic_clip

SMALL = {"widths": (4, 4, 6, 6, 8), "num_layers": 2, "num_heads": 2}
CONFIGS = {
    "transformers, BGR": ModelConfig.tiny(pixels="bgr01", **SMALL),
    "full-size stem, positions for all, 8 frames": ModelConfig.tiny(
        stem_stride=(1, 1),
        last_stride=(2, 2),
        pixels="rgb255",
        zero_tokens_lose_position=False,
        window_frames=8,
        **SMALL,
    ),
    "two towers": ModelConfig.tiny(fusion="none", **SMALL),
}


def shaken(config):
    """A model whose every array matters, biases and BatchNorm statistics too."""
    rng = np.random.default_rng(4)
    arrays = model_arrays(SyncModel(config, seed=3))
    return bind(config, {n: a if a.ndim > 1 else a + 0.3 * rng.random(a.shape) for n, a in arrays.items()})


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_exported_gives_what_jax_gives(name, tmp_path):
    save_model(tmp_path / "model", shaken(CONFIGS[name]), step=7, source="a test", licence="free")
    described = export.export(tmp_path / "model", tmp_path / "out")
    for kind in ("onnx", "stablehlo"):
        assert set(described["differences"][kind]) == set(export.PARTS)
        assert max(described["differences"][kind].values()) < 1e-5
    assert json.loads((tmp_path / "out" / "model.json").read_text()) == described
    assert (described["step"], described["licence"]) == (7, "free")


def test_the_included_model_is_exported_with_its_licence_and_takes_any_batch(tmp_path, capsys):
    assert run(["", "--mode=export", f"--output={tmp_path}/out"]) == 0
    assert "comparison" in capsys.readouterr().out
    metadata = {prop.key: prop.value for prop in onnx.load(tmp_path / "out" / "video.onnx").metadata_props}
    assert "GRID" in metadata["licence"] and metadata["window_frames"] == "5"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "video.onnx", providers=["CPUExecutionProvider"])
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 48, 96, 3), dtype=np.uint8)
    (together,) = session.run(None, {"frames": frames})
    for window, tokens in zip(frames, np.asarray(together), strict=True):
        np.testing.assert_allclose(session.run(None, {"frames": window[None]})[0][0], tokens, atol=1e-4)
    assert_the_documented_scan_is_score_clip(tmp_path / "out")
    assert run(["", "--mode=export", f"--output={tmp_path}/out"]) == 1
    assert "exists already" in capsys.readouterr().err


def assert_the_documented_scan_is_score_clip(exported):
    text = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in block)
    clip = synthetic_clip(seed=0, speaker=1, index=0)
    names = {"frames": clip.frames, "waveform": clip.waveform}
    exec(code.replace("exported", str(exported)), names)
    scores = mtd_jax.score_clip(mtd_jax.load_model(), clip.frames, clip.waveform)
    count = len(names["in_sync"])
    assert count == len(clip.frames) - 6 == len(scores) - 1
    np.testing.assert_allclose(names["in_sync"], scores[1:, 15], atol=1e-3)
    # Window i of the video with the audio of window i − 2: audio that is early by two frames.
    np.testing.assert_allclose(names["early_by_2"], scores[3:, 13], atol=1e-3)


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    from mtd_jax.network import onnx_graph

    monkeypatch.setattr(onnx_graph, "EPSILON", 0.5)
    with pytest.raises(
        UserError, match="out was not written: as onnx the results differ from JAX by .*comparison"
    ):
        export.export(None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_film_without_a_face_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        export.export(None, tmp_path / "out", video=tmp_path / "missing.mp4")
    assert not list(tmp_path.iterdir())
