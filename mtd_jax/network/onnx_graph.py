"""The network as ONNX graphs, for programs without JAX. Made from the same folded weights as scoring.

There are three, as a scan encodes every window once and compares it many times: video, audio, comparison. They use
operators of opset 17 alone that ONNX Runtime, OpenVINO and browsers have. Three-dimensional convolutions become
two-dimensional ones with the temporal taps in their channels, which is what runtimes are fast at and can quantise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtd_jax.network.folded import (
    Affine,
    Folded,
    FoldedEncoder,
    FoldedHead,
    FoldedLayer,
    FoldedModel,
    FoldedTowers,
    VideoConv,
    geometry,
)
from mtd_jax.network.layers import EPSILON, attention_mask, sinusoidal_positions
from mtd_jax.network.mel import HOP, N_FFT, mel_filterbank, periodic_hann
from mtd_jax.network.model import FRAME_SHAPE, NUM_MEL, ModelConfig
from mtd_jax.network.towers import frame_averages

OPSET = 17
_IR_VERSION = 9
_BATCH = "batch"


class _Graph:
    """Nodes and constants, in the order in which they are added. Values are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its only output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def reshape(self, x: str, *shape: int) -> str:
        """Args: shape: −1 stands for what is left."""
        return self.add("Reshape", x, self.constant(shape, np.int64))

    def part(self, x: str, first: int, end: int, axis: int) -> str:
        return self.add("Slice", x, *(self.constant([n], np.int64) for n in (first, end, axis)))

    def pad(self, x: str, before: Sequence[int], after: Sequence[int]) -> str:
        return self.add("Pad", x, self.constant([*before, *after], np.int64))

    def dense(self, x: str, affine: Affine) -> str:
        return self.add("Add", self.add("MatMul", x, self.constant(affine.kernel)), self.constant(affine.bias))

    def normalised(self, x: str, width: int) -> str:
        """LayerNorm without scale and bias, which are folded into what follows."""
        return self.add("LayerNormalization", x, self.constant(np.ones(width)), axis=-1, epsilon=EPSILON)

    def model(
        self,
        inputs: Sequence[tuple[str, int, Sequence[int]]],
        result: str,
        name: str,
        shape: Sequence[int],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The graph as a model that has been checked. Args: inputs: name, dtype, shape without the batch."""
        self.nodes.append(helper.make_node("Identity", [result], [name], name="result"))
        graph = helper.make_graph(
            self.nodes,
            "mtd_jax",
            [helper.make_tensor_value_info(n, dtype, [_BATCH, *dims]) for n, dtype, dims in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [_BATCH, *shape])],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
        helper.set_model_props(made, metadata)
        onnx.checker.check_model(made, full_check=True)
        return made


def video_graph(config: ModelConfig, weights: Folded, metadata: dict[str, str]) -> onnx.ModelProto:
    """`frames` uint8 (batch, T, 48, 96, 3), RGB in [0, 255] → `tokens` float32 (batch, T, width)."""
    graph, time = _Graph(), config.window_frames
    x = graph.add("Cast", "frames", to=TensorProto.FLOAT)
    if config.pixels != "rgb255":
        x = graph.add("Div", x, graph.constant(255))
    if config.pixels == "bgr01":
        x = graph.add("Gather", x, graph.constant([2, 1, 0], np.int64), axis=4)
    rows, columns, channels = FRAME_SHAPE
    x = graph.reshape(graph.add("Transpose", x, perm=[0, 1, 4, 2, 3]), -1, channels, rows, columns)
    blocks, _ = geometry(config)
    size = (rows, columns)
    for conv, (stride, padding, residual) in zip(weights.video, blocks, strict=True):
        y = _over_time(graph, x, conv, time, size, stride, padding)
        x = graph.add("Relu", graph.add("Add", y, x) if residual else y)
        spans = zip(size, np.shape(conv.taps[0])[:2], stride, padding[:2], strict=True)
        down, across = ((n + 2 * pad - kernel) // step + 1 for n, kernel, step, pad in spans)
        size = (down, across)
    tokens = graph.reshape(x, -1, time, config.width)
    if isinstance(weights, FoldedTowers):
        tokens = _unit(graph, _head(graph, tokens, weights.video_head, time, config.width), time, config.width)
    inputs = [("frames", TensorProto.UINT8, [time, *FRAME_SHAPE])]
    return graph.model(inputs, tokens, "tokens", [time, config.width], metadata)


def audio_graph(config: ModelConfig, weights: Folded, steps: int, metadata: dict[str, str]) -> onnx.ModelProto:
    """`samples` float32 (batch, 200·S + 600) → `tokens` float32 (batch, S, width).

    Samples are 16 kHz in [−1, 1), from 400 samples before the window to 200 after it; the log-mel spectrogram is
    part of the graph. Of two towers, tokens are (batch, T, width).
    """
    graph, count = _Graph(), (steps - 1) * HOP + N_FFT
    x = _log_mel(graph, graph.reshape("samples", -1, 1, count))
    x = graph.reshape(x, -1, 1, NUM_MEL, steps)
    _, blocks = geometry(config)
    for affine, (stride, padding, residual) in zip(weights.audio, blocks, strict=True):
        y = _conv(graph, x, np.asarray(affine.kernel), affine.bias, stride, padding)
        x = graph.add("Relu", graph.add("Add", y, x) if residual else y)
    tokens = graph.add("Transpose", graph.reshape(x, -1, config.width, steps), perm=[0, 2, 1])
    length = steps
    if isinstance(weights, FoldedTowers):
        length = config.window_frames
        tokens = _head(graph, tokens, weights.audio_head, steps, config.width)
        tokens = graph.add("MatMul", graph.constant(frame_averages(steps, length)), tokens)
        tokens = _unit(graph, tokens, length, config.width)
    inputs = [("samples", TensorProto.FLOAT, [count])]
    return graph.model(inputs, tokens, "tokens", [length, config.width], metadata)


def comparison_graph(
    config: ModelConfig, weights: Folded, steps: int, metadata: dict[str, str]
) -> onnx.ModelProto:
    """`video` and `audio`, tokens of as many windows → `logits` float32 (batch,); positive = in sync."""
    graph, time, width = _Graph(), config.window_frames, config.width
    if isinstance(weights, FoldedTowers):
        steps = time
        product = graph.add("Mul", "video", "audio")
        cosine = graph.add("ReduceSum", product, graph.constant([1, 2], np.int64), keepdims=0)
        logits = graph.add("Mul", cosine, graph.constant(weights.classifier.kernel))
        logits = graph.add("Add", logits, graph.constant(weights.classifier.bias))
    else:
        logits = _transformers(graph, config, weights, steps)
    inputs = [("video", TensorProto.FLOAT, [time, width]), ("audio", TensorProto.FLOAT, [steps, width])]
    return graph.model(inputs, logits, "logits", [], metadata)


def _transformers(graph: _Graph, config: ModelConfig, weights: FoldedModel, steps: int) -> str:
    time = config.window_frames
    video = _embedded(graph, config, "video", time)
    audio = _embedded(graph, config, "audio", steps)
    av = _read(graph, config, weights.av, audio, video, steps, time)
    va = _read(graph, config, weights.va, video, audio, time, steps)
    av, va = _embedded(graph, config, av, steps), _embedded(graph, config, va, time)
    fusion = _read(graph, config, weights.fusion, av, va, steps, time)
    largest = graph.add("ReduceMax", fusion, axes=[1], keepdims=0)
    hidden = graph.add("Tanh", graph.dense(largest, weights.head))
    return graph.reshape(graph.dense(hidden, weights.classifier), -1)


def _over_time(graph: _Graph, x: str, conv: VideoConv, time: int, size: tuple[int, int], stride, padding) -> str:
    """A three-dimensional convolution of (batch · time, channels, rows, columns), which keeps the time."""
    kernel, pad = np.stack(conv.taps), padding[2]  # (k_time, k_height, k_width, in, out)
    taps = len(kernel)
    if taps == 1:
        return _conv(graph, x, kernel[0], conv.bias, stride, padding)
    channels, (rows, columns) = kernel.shape[3], size
    images = graph.reshape(x, -1, time, channels, rows, columns)
    images = graph.pad(images, [0, pad, 0, 0, 0], [0, pad, 0, 0, 0])
    together = graph.add("Concat", *(graph.part(images, tap, tap + time, 1) for tap in range(taps)), axis=2)
    together = graph.reshape(together, -1, taps * channels, rows, columns)
    tall = np.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], taps * channels, -1)
    return _conv(graph, together, tall, conv.bias, stride, padding)


def _conv(graph: _Graph, x: str, kernel: np.ndarray, bias: Any, stride, padding) -> str:
    """Args: kernel: (k_height, k_width, in, out)."""
    down, across = padding[:2]
    weights = graph.constant(kernel.transpose(3, 2, 0, 1))
    pads = [down, across, down, across]
    return graph.add("Conv", x, weights, graph.constant(bias), strides=list(stride), pads=pads)


def _log_mel(graph: _Graph, samples: str) -> str:
    """(batch, 1, samples) → (batch, 80, S), as `mel.log_mel_of_padded`: the Fourier transform as a convolution."""
    bins = N_FFT // 2 + 1
    angle = 2 * np.pi * np.outer(np.arange(bins), np.arange(N_FFT)) / N_FFT
    waves = np.concatenate([np.cos(angle), np.sin(angle)]) * periodic_hann()
    spectrum = graph.add("Conv", samples, graph.constant(waves[:, None]), strides=[HOP])
    square = graph.add("Mul", spectrum, spectrum)
    real, imaginary = graph.part(square, 0, bins, 1), graph.part(square, bins, 2 * bins, 1)
    magnitude = graph.add("Sqrt", graph.add("Add", real, imaginary))
    mel = graph.add("MatMul", graph.constant(mel_filterbank()), magnitude)
    logarithm = graph.add("Log", graph.add("Max", mel, graph.constant(1e-5)))
    scaled = graph.add("Mul", logarithm, graph.constant(8 * 0.2 / np.log(10)))  # 20·log10(x)·8/100
    shifted = graph.add("Add", scaled, graph.constant(8 * 0.8 - 4))
    return graph.add("Clip", shifted, graph.constant(-4), graph.constant(4))


def _embedded(graph: _Graph, config: ModelConfig, tokens: str, length: int) -> str:
    """Tokens scaled by √width, with positions added."""
    positions = graph.constant(sinusoidal_positions(length, config.width))
    if config.zero_tokens_lose_position:
        zero = graph.constant(0)
        lost = graph.add("Equal", graph.part(tokens, 0, 1, 2), zero)
        positions = graph.add("Where", lost, zero, positions)
    return graph.add("Add", graph.add("Mul", tokens, graph.constant(config.width**0.5)), positions)


def _read(
    graph: _Graph, config: ModelConfig, encoder: FoldedEncoder, x: str, source: str, queries: int, keys: int
) -> str:
    """An encoder whose `queries` tokens x read the `keys` tokens of the source."""
    source = graph.normalised(source, config.width)
    mask = graph.constant(attention_mask(queries, keys))
    for layer in encoder.layers:
        x = graph.add("Add", x, _attention(graph, config, layer, x, source, mask))
        hidden = graph.add("Relu", graph.dense(graph.normalised(x, config.width), layer.fc1))
        x = graph.add("Add", x, graph.dense(hidden, layer.fc2))
    scaled = graph.add("Mul", graph.normalised(x, config.width), graph.constant(encoder.final_norm.kernel))
    return graph.add("Add", scaled, graph.constant(encoder.final_norm.bias))


def _attention(graph: _Graph, config: ModelConfig, layer: FoldedLayer, x: str, source: str, mask: str) -> str:
    heads, width = config.num_heads, config.width

    def split(tokens: str, order: list[int]) -> str:
        tokens = graph.add("Reshape", tokens, graph.constant([0, 0, heads, width // heads], np.int64))
        return graph.add("Transpose", tokens, perm=order)

    query = split(graph.dense(graph.normalised(x, width), layer.query), [0, 2, 1, 3])
    both = graph.dense(source, layer.key_value)
    key = split(graph.part(both, 0, width, 2), [0, 2, 3, 1])
    value = split(graph.part(both, width, 2 * width, 2), [0, 2, 1, 3])
    logits = graph.add("Add", graph.add("MatMul", query, key), mask)
    mixed = graph.add("MatMul", graph.add("Softmax", logits, axis=-1), value)
    mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
    return graph.dense(graph.add("Reshape", mixed, graph.constant([0, 0, width], np.int64)), layer.out)


def _head(graph: _Graph, tokens: str, head: FoldedHead, length: int, width: int) -> str:
    x = graph.normalised(tokens, width)
    padded = graph.pad(x, [0, 1, 0], [0, 1, 0])
    near = graph.add("Concat", *(graph.part(padded, k, k + length, 1) for k in range(3)), axis=2)
    return graph.add("Add", x, graph.dense(graph.add("Relu", graph.dense(near, head.fc1)), head.fc2))


def _unit(graph: _Graph, tokens: str, length: int, width: int) -> str:
    """All tokens of a window as one vector of length 1."""
    rows = graph.reshape(tokens, -1, length * width)
    square = graph.add("ReduceSum", graph.add("Mul", rows, rows), graph.constant([1], np.int64), keepdims=1)
    size = graph.add("Sqrt", graph.add("Add", square, graph.constant(1e-12)))
    return graph.reshape(graph.add("Div", rows, size), -1, length, width)
