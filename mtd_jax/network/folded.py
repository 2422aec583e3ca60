"""The network as scoring runs it: the same function as `SyncModel`, computed with the fewest operations.

`fold` prepares the weights on the host; the rest are pure functions of the `FoldedModel` it returns. They save
work in five places:

- BatchNorm, and LayerNorm's scale and bias, are folded into the neighbouring layers (`fold`).
- Frames that windows have in common are convolved once (`conv3d.conv3d_windows`).
- Temporal taps that would meet padding are skipped (`conv3d.conv3d_time_first`).
- Keys and values that pairs have in common are computed once (`_read`, `_read_shared`).
- The value relations, which only training needs, are not computed.

All of this is exact up to rounding. One discontinuity remains: a token whose channel 0 is close to the edge
between 0 and positive may end up on the other side (`ModelConfig.zero_tokens_lose_position`), as it may on another
machine.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Shaped, UInt8

from mtd_jax.network.conv3d import conv3d_time_first, conv3d_windows
from mtd_jax.network.layers import (
    EPSILON,
    CrossModalEncoder,
    Linear,
    Prenet,
    attention_mask,
    normalised,
    precision_of,
    sinusoidal_positions,
)
from mtd_jax.network.model import ModelConfig, SyncModel, abstract_model, scale_pixels
from mtd_jax.network.towers import TemporalHead, per_frame, unit, with_neighbours

Weights = np.ndarray | jax.Array  # NumPy arrays from `fold`, JAX arrays once `Scorer` has put them on its device
_Block = tuple[tuple[int, ...], tuple[int, ...], bool]  # stride, padding, residual


class Affine(NamedTuple):
    """A dense layer or a convolution: kernel (…, in, out) and bias (out,)."""

    kernel: Weights
    bias: Weights


class VideoConv(NamedTuple):
    """A 3-D convolution: k_time kernels (k_height, k_width, in, out), and bias (out,).

    The kernels are separate arrays because every call would copy slices of a single one.
    """

    taps: tuple[Weights, ...]
    bias: Weights


class FoldedLayer(NamedTuple):
    """One layer of a `CrossModalEncoder`, with the LayerNorms' scale and bias folded into its dense layers."""

    query: Affine  # includes the factor head_dim^-½ of the attention logits
    key_value: Affine
    out: Affine
    fc1: Affine
    fc2: Affine


class FoldedEncoder(NamedTuple):
    """A `CrossModalEncoder`; nothing follows its last LayerNorm that could take scale and bias."""

    layers: list[FoldedLayer]
    final_norm: Affine  # scale (width,) as kernel, and bias (width,)


class FoldedModel(NamedTuple):
    """All that scoring needs of a `SyncModel`: a tree of NumPy or JAX arrays in the model's compute_dtype."""

    video: list[VideoConv]
    audio: list[Affine]
    av: FoldedEncoder
    va: FoldedEncoder
    fusion: FoldedEncoder
    head: Affine
    classifier: Affine


class FoldedHead(NamedTuple):
    """A `TemporalHead`."""

    fc1: Affine
    fc2: Affine


class FoldedTowers(NamedTuple):
    """All that scoring needs of a `SyncModel` of two towers."""

    video: list[VideoConv]
    audio: list[Affine]
    video_head: FoldedHead
    audio_head: FoldedHead
    classifier: Affine  # of the cosine: scale (1,) as kernel, and bias (1,)


Folded = FoldedModel | FoldedTowers


def fold(model: SyncModel) -> Folded:
    """Folds BatchNorm into the convolutions, and LayerNorm's scale and bias into the dense layers that follow.

    Exact up to rounding: in float32 the results differ from the model's by about 1e-6 of their magnitude.
    """
    video = [
        VideoConv(tuple(np.moveaxis(np.asarray(kernel), 2, 0)), bias)
        for kernel, bias in _fold_prenet(model.video_prenet)
    ]
    audio = _fold_prenet(model.audio_prenet)
    fold_rest = _fold_towers if model.config.fusion == "none" else _fold_transformers
    folded = fold_rest(model, video, audio)
    dtype = jnp.dtype(model.config.compute_dtype)
    return jax.tree.map(lambda array: np.asarray(array, dtype), folded)


def _fold_transformers(model: SyncModel, video: list[VideoConv], audio: list[Affine]) -> FoldedModel:
    return FoldedModel(
        video,
        audio,
        av=_fold_encoder(model.av_encoder),
        va=_fold_encoder(model.va_encoder),
        fusion=_fold_encoder(model.fusion_encoder),
        head=_fold_dense(model.head),
        classifier=_fold_dense(model.classifier),
    )


def _fold_towers(model: SyncModel, video: list[VideoConv], audio: list[Affine]) -> FoldedTowers:
    def head(module: TemporalHead) -> FoldedHead:
        return FoldedHead(_fold_dense(module.fc1), _fold_dense(module.fc2))

    towers = model.towers
    classifier = Affine(np.asarray(towers.scale[...]), np.asarray(towers.bias[...]))
    return FoldedTowers(video, audio, head(towers.video_head), head(towers.audio_head), classifier)


def encode_video(
    config: ModelConfig, weights: Folded, frames: UInt8[Array, "frames 48 96 3"]
) -> Shaped[Array, "windows time width"]:
    """Tokens of every window of T consecutive frames; of two towers, its vector of length 1."""
    precision = precision_of(config.compute_dtype)
    x = scale_pixels(frames, config.pixels).astype(config.compute_dtype)
    blocks, _ = geometry(config)
    for number, (conv, (stride, padding, residual)) in enumerate(zip(weights.video, blocks, strict=True)):
        if number == 0:
            y = conv3d_windows(x, conv.taps, config.window_frames, stride, padding, precision)
        else:
            y = conv3d_time_first(x, conv.taps, stride, padding, precision)
        x = jax.nn.relu(y + conv.bias + x if residual else y + conv.bias)
    tokens = jnp.moveaxis(x[:, :, 0, 0], 0, 1)
    return unit(_head(config, weights.video_head, tokens)) if isinstance(weights, FoldedTowers) else tokens


def encode_audio(
    config: ModelConfig, weights: Folded, mel: Float[Array, "windows steps 80"]
) -> Shaped[Array, "windows steps width"]:
    """Tokens of every window of audio; of two towers, its vector of length 1 with T steps."""
    x = jnp.swapaxes(mel, 1, 2)[..., None].astype(config.compute_dtype)
    _, blocks = geometry(config)
    for (kernel, bias), (stride, padding, residual) in zip(weights.audio, blocks, strict=True):
        y = lax.conv_general_dilated(
            x,
            jnp.asarray(kernel),
            stride,
            [(p, p) for p in padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision_of(config.compute_dtype),
        )
        x = jax.nn.relu(y + bias + x if residual else y + bias)
    if isinstance(weights, FoldedTowers):
        return unit(per_frame(_head(config, weights.audio_head, x[:, 0]), config.window_frames))
    return x[:, 0]


def compare_shifts(
    config: ModelConfig,
    weights: Folded,
    video_tokens: Shaped[Array, "windows time width"],
    audio_tokens: Shaped[Array, "audio_windows steps width"],
    every: int = 1,
) -> Float[Array, "windows shifts"]:
    """Logits of each video window i against a run of audio windows: column c is that against every·i + c."""
    windows = len(video_tokens)
    shifts = len(audio_tokens) - every * (windows - 1)
    audio_of_pair = every * np.arange(windows)[:, None] + np.arange(shifts)
    if isinstance(weights, FoldedTowers):
        vectors = (x.reshape(len(x), -1) for x in (video_tokens, audio_tokens))
        cosines = jnp.take_along_axis(_einsum(config, "ik,jk->ij", *vectors), audio_of_pair, axis=1)
        return jnp.asarray(cosines * weights.classifier.kernel + weights.classifier.bias, jnp.float32)
    audio_of_pair = audio_of_pair.reshape(-1)
    video, audio = _embed(config, video_tokens), _embed(config, audio_tokens)
    queries = audio[audio_of_pair].reshape(windows, shifts, *audio.shape[1:])
    av = _read_shared(config, weights.av, queries, video).reshape(-1, *audio.shape[1:])
    va = _read(config, weights.va, jnp.repeat(video, shifts, axis=0), audio, audio_of_pair)
    fusion = _read(config, weights.fusion, _embed(config, av), _embed(config, va))
    logits = _dense(config, weights.classifier, jnp.tanh(_dense(config, weights.head, fusion.max(axis=1))))
    return logits.reshape(windows, shifts).astype(jnp.float32)


def _fold_prenet(prenet: Prenet) -> list[Affine]:
    folded = []
    for block in prenet.blocks:
        norm = block.norm
        factor = _numbers(norm.scale) / np.sqrt(_numbers(norm.var) + EPSILON)
        bias = (_numbers(block.conv.bias) - _numbers(norm.mean)) * factor + _numbers(norm.bias)
        folded.append(Affine(np.asarray(block.conv.kernel[...]) * factor.astype(np.float32), bias))
    return folded


def _fold_encoder(encoder: CrossModalEncoder) -> FoldedEncoder:
    layers = []
    for layer in encoder.layers:
        attention = layer.attention
        kernel, bias = _fold_dense(attention.in_proj, layer.attention_norm)
        width = kernel.shape[0]
        scale = np.float32((width // attention.num_heads) ** -0.5)
        layers.append(
            FoldedLayer(
                query=Affine(kernel[:, :width] * scale, bias[:width] * scale),
                key_value=Affine(kernel[:, width:], bias[width:]),
                out=_fold_dense(attention.out_proj),
                fc1=_fold_dense(layer.fc1, layer.feedforward_norm),
                fc2=_fold_dense(layer.fc2),
            )
        )
    return FoldedEncoder(layers, Affine(*_scale_and_bias(encoder.final_norm)))


def _fold_dense(linear: Linear, norm: nnx.LayerNorm | None = None) -> Affine:
    """`linear` after an optional `norm`: (x·scale + shift) W + b = x (scale W) + (shift W + b)."""
    kernel, bias = np.asarray(linear.kernel[...]), _numbers(linear.bias)
    if norm is None:
        return Affine(kernel, bias)
    scale, shift = _scale_and_bias(norm)
    return Affine(kernel * scale[:, None], bias + shift.astype(np.float64) @ kernel)


def _scale_and_bias(norm: nnx.LayerNorm) -> tuple[np.ndarray, np.ndarray]:
    assert norm.scale is not None and norm.bias is not None  # optional in nnx, present in our layers
    return np.asarray(norm.scale[...]), np.asarray(norm.bias[...])


def _numbers(parameter: nnx.Variable) -> np.ndarray:
    """Folding divides and multiplies weights; float64 keeps the rounding of that below float32's."""
    return np.asarray(parameter[...], np.float64)


@functools.lru_cache(maxsize=16)
def geometry(config: ModelConfig) -> tuple[list[_Block], list[_Block]]:
    """Stride, padding and residual of the blocks of the video and of the audio prenet."""
    model = abstract_model(config)
    video, audio = (
        [(block.stride, block.padding, block.residual) for block in prenet.blocks]
        for prenet in (model.video_prenet, model.audio_prenet)
    )
    return video, audio


def _read(
    config: ModelConfig,
    encoder: FoldedEncoder,
    queries: Shaped[Array, "pairs q width"],
    sources: Shaped[Array, "n k width"],
    source_of_query: Int[np.ndarray, " pairs"] | None = None,
) -> Shaped[Array, "pairs q width"]:
    """A `CrossModalEncoder`: queries attend to sources.

    A layer's keys and values depend on the source alone, so they are computed once per source, not once per pair.

    Args:
      source_of_query: index of the source of each pair; None: n = pairs, in the same order.
    """
    x, sources = queries, normalised(sources)
    mask = attention_mask(queries.shape[1], sources.shape[1])
    for layer in encoder.layers:
        key, value = (_split_heads(config, y) for y in _key_value(config, layer, sources))
        if source_of_query is not None:
            key, value = key[source_of_query], value[source_of_query]
        query = _split_heads(config, _dense(config, layer.query, normalised(x)))
        logits = _einsum(config, "bkhd,bqhd->bhkq", key, query, jnp.float32) + mask.T
        mixed = _einsum(config, "bhkq,bkhd->bqhd", jax.nn.softmax(logits, axis=2).astype(x.dtype), value)
        x = x + _dense(config, layer.out, mixed.reshape(x.shape))
        x = x + _feedforward(config, layer, x)
    return _final_norm(encoder, x)


def _read_shared(
    config: ModelConfig,
    encoder: FoldedEncoder,
    queries: Shaped[Array, "n pairs q width"],
    sources: Shaped[Array, "n k width"],
) -> Shaped[Array, "n pairs*q width"]:
    """`_read` for groups of pairs that share a source.

    There are few keys for many queries, so the query and output projections are multiplied into keys and values,
    once per source: logits = x · (W_query · key) and output = weights · (value · W_out). Two thin products replace
    two square ones and many tiny ones: 0.14 instead of 0.65 ms on one core per layer and window of the student.
    """
    groups, pairs, q, width = queries.shape
    k, heads = sources.shape[1], config.num_heads
    x, sources = queries.reshape(groups, pairs * q, width), normalised(sources)
    mask = np.tile(attention_mask(q, k), (pairs, 1))[:, None]  # (pairs·q, 1, k)
    for layer in encoder.layers:
        key, value = (_split_heads(config, y) for y in _key_value(config, layer, sources))
        query_kernel, query_bias = (_split_heads(config, y) for y in layer.query)
        out_kernel = layer.out.kernel.reshape(heads, -1, width)
        wide_key = _einsum(config, "chd,nkhd->nhkc", query_kernel, key).reshape(groups, heads * k, width)
        wide_value = _einsum(config, "nkhd,hdc->nhkc", value, out_kernel).reshape(groups, heads * k, width)
        bias = _einsum(config, "hd,nkhd->nhk", query_bias, key, jnp.float32)[:, None]
        logits = _einsum(config, "nrc,nmc->nrm", normalised(x), wide_key, jnp.float32)
        logits = logits.reshape(groups, pairs * q, heads, k) + bias + mask
        weights = jax.nn.softmax(logits).astype(x.dtype).reshape(groups, pairs * q, heads * k)
        x = x + _einsum(config, "nrm,nmc->nrc", weights, wide_value) + layer.out.bias
        x = x + _feedforward(config, layer, x)
    return _final_norm(encoder, x)


def _head(
    config: ModelConfig, head: FoldedHead, tokens: Shaped[Array, "n time width"]
) -> Shaped[Array, "n time width"]:
    x = normalised(tokens)
    return x + _dense(config, head.fc2, jax.nn.relu(_dense(config, head.fc1, with_neighbours(x))))


def _key_value(config: ModelConfig, layer: FoldedLayer, sources: Array) -> list[Array]:
    return jnp.split(_dense(config, layer.key_value, sources), 2, axis=-1)


def _feedforward(config: ModelConfig, layer: FoldedLayer, x: Array) -> Array:
    return _dense(config, layer.fc2, jax.nn.relu(_dense(config, layer.fc1, normalised(x))))


def _embed(config: ModelConfig, tokens: Shaped[Array, "n steps width"]) -> Shaped[Array, "n steps width"]:
    """Tokens as a `CrossModalEncoder` embeds them: scaled by √width, with positions added."""
    tokens = tokens.astype(config.compute_dtype)
    positions = sinusoidal_positions(*tokens.shape[1:]).astype(tokens.dtype)
    if config.zero_tokens_lose_position:
        positions = jnp.where(tokens[..., :1] == 0, 0, positions)
    return tokens * jnp.asarray(config.width**0.5, tokens.dtype) + positions


def _final_norm(encoder: FoldedEncoder, x: Array) -> Array:
    return normalised(x) * encoder.final_norm.kernel + encoder.final_norm.bias


def _dense(
    config: ModelConfig, affine: Affine, x: Shaped[Array, "*rows width_in"]
) -> Shaped[Array, "*rows width_out"]:
    """All leading axes as rows of one product."""
    rows = x.reshape(-1, x.shape[-1])
    y = jnp.dot(rows, affine.kernel, precision=precision_of(config.compute_dtype)) + affine.bias
    return y.reshape(*x.shape[:-1], -1)


def _split_heads(
    config: ModelConfig, x: Shaped[Weights, "*rows width"]
) -> Shaped[Weights, "*rows heads head_dim"]:
    return x.reshape(*x.shape[:-1], config.num_heads, -1)


def _einsum(
    config: ModelConfig, formula: str, a: Weights, b: Weights, dtype: jax.typing.DTypeLike | None = None
) -> Array:
    return jnp.einsum(formula, a, b, precision=precision_of(config.compute_dtype), preferred_element_type=dtype)
