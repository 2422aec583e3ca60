"""The network as scoring runs it: the numbers of `SyncModel`, in the order of operations that costs least.

Pure functions of a `FoldedModel`. What they leave out or share, each in one place: BatchNorm and LayerNorm's scale
and bias (`folded.fold`), the frames that windows have in common (`conv3d.conv3d_windows`), temporal taps that
meet padding (`conv3d.conv3d_time_first`), keys and values that pairs have in common (`_read`, `_read_shared`), and
the relations that only training needs. Everything is exact up to rounding. A token whose channel 0 is on the edge
between 0 and positive may fall to the other side by rounding, as it may between any two machines
(`ModelConfig.zero_tokens_lose_position`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mtd_jax.network.conv3d import conv3d_time_first, conv3d_windows
from mtd_jax.network.layers import (
    EPSILON,
    CrossModalEncoder,
    Linear,
    Prenet,
    attention_mask,
    precision_of,
    sinusoidal_positions,
)
from mtd_jax.network.model import ModelConfig, SyncModel, abstract_model, scale_pixels

# A model's weights as inference uses them: normalisations folded into the layers beside them, on the host.

Weights = np.ndarray | jax.Array  # folded on the host; `Scorer` puts them on its device


class Affine(NamedTuple):
    """A dense layer or a convolution: kernel (…, in, out) and bias (out,)."""

    kernel: Weights
    bias: Weights


class VideoConv(NamedTuple):
    """A 3-D convolution: k_time kernels (k_height, k_width, in, out), and bias (out,).

    Arrays of their own, since every call would copy the slices of one.
    """

    taps: tuple[Weights, ...]
    bias: Weights


class FoldedLayer(NamedTuple):
    """One layer of a `CrossModalEncoder`; its LayerNorms keep no scale and bias, the dense layers have them."""

    query: Affine  # with the factor head_dim^-½ of the attention logits
    key_value: Affine
    out: Affine
    fc1: Affine
    fc2: Affine


class FoldedEncoder(NamedTuple):
    layers: list[FoldedLayer]
    final_norm: Affine  # scale and bias, (width,) each


class FoldedModel(NamedTuple):
    """Everything that `inference` needs of a `SyncModel`: a tree of NumPy or JAX arrays in its compute_dtype."""

    video: list[VideoConv]
    audio: list[Affine]
    av: FoldedEncoder
    va: FoldedEncoder
    fusion: FoldedEncoder
    head: Affine
    classifier: Affine


def fold(model: SyncModel) -> FoldedModel:
    """Folds BatchNorm into the convolutions and LayerNorm's scale and bias into the dense layers that follow it.

    Exact up to rounding: the results differ from the model's own by about 1e-6 of their size in float32.
    """
    folded = FoldedModel(
        video=[
            VideoConv(tuple(np.moveaxis(np.asarray(kernel), 2, 0)), bias)
            for kernel, bias in _prenet(model.video_prenet)
        ],
        audio=_prenet(model.audio_prenet),
        av=_encoder(model.av_encoder),
        va=_encoder(model.va_encoder),
        fusion=_encoder(model.fusion_encoder),
        head=_folded_dense(model.head),
        classifier=_folded_dense(model.classifier),
    )
    dtype = jnp.dtype(model.config.compute_dtype)
    return jax.tree.map(lambda array: np.asarray(array, dtype), folded)


def _prenet(prenet: Prenet) -> list[Affine]:
    folded = []
    for block in prenet.blocks:
        norm = block.norm
        factor = _numbers(norm.scale) / np.sqrt(_numbers(norm.var) + EPSILON)
        bias = (_numbers(block.conv.bias) - _numbers(norm.mean)) * factor + _numbers(norm.bias)
        folded.append(Affine(np.asarray(block.conv.kernel[...]) * factor.astype(np.float32), bias))
    return folded


def _encoder(encoder: CrossModalEncoder) -> FoldedEncoder:
    layers = []
    for layer in encoder.layers:
        attention = layer.attention
        kernel, bias = _folded_dense(attention.in_proj, layer.attention_norm)
        width = kernel.shape[0]
        scale = np.float32((width // attention.num_heads) ** -0.5)
        layers.append(
            FoldedLayer(
                query=Affine(kernel[:, :width] * scale, bias[:width] * scale),
                key_value=Affine(kernel[:, width:], bias[width:]),
                out=_folded_dense(attention.out_proj),
                fc1=_folded_dense(layer.fc1, layer.feedforward_norm),
                fc2=_folded_dense(layer.fc2),
            )
        )
    norm = encoder.final_norm
    return FoldedEncoder(layers, Affine(np.asarray(norm.scale[...]), np.asarray(norm.bias[...])))


def _folded_dense(linear: Linear, norm=None) -> Affine:
    """`linear`, after `norm` if there is one: (x·scale + shift) W + b = x (scale W) + (shift W + b)."""
    kernel, bias = np.asarray(linear.kernel[...]), _numbers(linear.bias)
    if norm is None:
        return Affine(kernel, bias)
    scale = np.asarray(norm.scale[...])
    return Affine(kernel * scale[:, None], bias + _numbers(norm.bias) @ kernel)


def _numbers(parameter) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def encode_video(config: ModelConfig, weights: FoldedModel, frames):
    """Tokens of every window of T consecutive frames: uint8 (windows + T − 1, 48, 96, 3) → (windows, T, width)."""
    precision = precision_of(config.compute_dtype)
    x = scale_pixels(frames, config.pixels).astype(config.compute_dtype)
    geometry, _ = _geometry(config)
    for number, (conv, (stride, padding, residual)) in enumerate(zip(weights.video, geometry, strict=True)):
        if number == 0:
            y = conv3d_windows(x, conv.taps, config.window_frames, stride, padding, precision)
        else:
            y = conv3d_time_first(x, conv.taps, stride, padding, precision)
        x = jax.nn.relu(y + conv.bias + x if residual else y + conv.bias)
    return jnp.moveaxis(x[:, :, 0, 0], 0, 1)


def encode_audio(config: ModelConfig, weights: FoldedModel, mel):
    """Log-mel (windows, S, 80) → (windows, S, width)."""
    x = jnp.swapaxes(mel, 1, 2)[..., None].astype(config.compute_dtype)
    _, geometry = _geometry(config)
    for (kernel, bias), (stride, padding, residual) in zip(weights.audio, geometry, strict=True):
        y = lax.conv_general_dilated(
            x,
            kernel,
            stride,
            [(p, p) for p in padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision_of(config.compute_dtype),
        )
        x = jax.nn.relu(y + bias + x if residual else y + bias)
    return x[:, 0]


@functools.lru_cache(maxsize=16)
def _geometry(config):
    """(stride, padding, residual) of the blocks of both prenets."""
    model = abstract_model(config)
    prenets = (model.video_prenet, model.audio_prenet)
    return [[(block.stride, block.padding, block.residual) for block in prenet.blocks] for prenet in prenets]


def compare_shifts(config: ModelConfig, weights: FoldedModel, video_tokens, audio_tokens):
    """Logits of each window of frames against a run of windows of sound.

    Args:
      video_tokens: (windows, T, width).
      audio_tokens: (windows + shifts − 1, S, width).

    Returns:
      float32 (windows, shifts): entry (i, c) is video window i against audio window i + c.
    """
    windows = len(video_tokens)
    shifts = len(audio_tokens) - windows + 1
    audio_of_pair = (np.arange(windows)[:, None] + np.arange(shifts)).reshape(-1)
    video, audio = _embed(config, video_tokens), _embed(config, audio_tokens)
    queries = audio[audio_of_pair].reshape(windows, shifts, *audio.shape[1:])
    av = _read_shared(config, weights.av, queries, video).reshape(-1, *audio.shape[1:])
    va = _read(config, weights.va, jnp.repeat(video, shifts, axis=0), audio, audio_of_pair)
    fusion = _read(config, weights.fusion, _embed(config, av), _embed(config, va))
    logits = _dense(config, weights.classifier, jnp.tanh(_dense(config, weights.head, fusion.max(axis=1))))
    return logits.reshape(windows, shifts).astype(jnp.float32)


def _read(config, encoder: FoldedEncoder, queries, sources, source_of_query=None):
    """A `CrossModalEncoder`: queries (pairs, q, width) read sources (n, k, width), by the given index or in order.

    A layer's keys and values depend on the source alone: where pairs share one, they are computed once.
    """
    x, sources = queries, _normalise(sources)
    mask = attention_mask(queries.shape[1], sources.shape[1])
    for layer in encoder.layers:
        key, value = (_split_heads(config, y) for y in _key_value(config, layer, sources))
        if source_of_query is not None:
            key, value = key[source_of_query], value[source_of_query]
        query = _split_heads(config, _dense(config, layer.query, _normalise(x)))
        logits = _einsum(config, "bkhd,bqhd->bhkq", key, query, jnp.float32) + mask.T
        mixed = _einsum(config, "bhkq,bkhd->bqhd", jax.nn.softmax(logits, axis=2).astype(x.dtype), value)
        x = x + _dense(config, layer.out, mixed.reshape(x.shape))
        x = x + _feedforward(config, layer, x)
    return _final_norm(encoder, x)


def _read_shared(config, encoder: FoldedEncoder, queries, sources):
    """`_read` where groups of pairs share a source: queries (n, pairs, q, width), sources (n, k, width).

    With few keys for many queries the projections of query and output are multiplied into keys and values, once
    per source: logits = x · (W_query · key) and output = weights · (value · W_out). Two thin products replace two
    square ones and many tiny ones: 0.14 instead of 0.65 ms of a core per layer and window of the student.
    """
    groups, pairs, q, width = queries.shape
    k, heads = sources.shape[1], config.num_heads
    x, sources = queries.reshape(groups, pairs * q, width), _normalise(sources)
    mask = np.tile(attention_mask(q, k), (pairs, 1))[:, None]  # (pairs·q, 1, k)
    for layer in encoder.layers:
        key, value = (_split_heads(config, y) for y in _key_value(config, layer, sources))
        query_kernel, query_bias = (_split_heads(config, y) for y in layer.query)
        out_kernel = layer.out.kernel.reshape(heads, -1, width)
        wide_key = _einsum(config, "chd,nkhd->nhkc", query_kernel, key).reshape(groups, heads * k, width)
        wide_value = _einsum(config, "nkhd,hdc->nhkc", value, out_kernel).reshape(groups, heads * k, width)
        bias = _einsum(config, "hd,nkhd->nhk", query_bias, key, jnp.float32)[:, None]
        logits = _einsum(config, "nrc,nmc->nrm", _normalise(x), wide_key, jnp.float32)
        logits = logits.reshape(groups, pairs * q, heads, k) + bias + mask
        weights = jax.nn.softmax(logits).astype(x.dtype).reshape(groups, pairs * q, heads * k)
        x = x + _einsum(config, "nrm,nmc->nrc", weights, wide_value) + layer.out.bias
        x = x + _feedforward(config, layer, x)
    return _final_norm(encoder, x)


def _key_value(config, layer: FoldedLayer, sources):
    return jnp.split(_dense(config, layer.key_value, sources), 2, axis=-1)


def _feedforward(config, layer: FoldedLayer, x):
    return _dense(config, layer.fc2, jax.nn.relu(_dense(config, layer.fc1, _normalise(x))))


def _embed(config, tokens):
    tokens = tokens.astype(config.compute_dtype)
    positions = sinusoidal_positions(*tokens.shape[1:]).astype(tokens.dtype)
    if config.zero_tokens_lose_position:
        positions = jnp.where(tokens[..., :1] == 0, 0, positions)
    return tokens * jnp.asarray(config.width**0.5, tokens.dtype) + positions


def _normalise(x):
    """LayerNorm without scale and bias, computed in float32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(axis=-1, keepdims=True)
    return (centred * lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)).astype(x.dtype)


def _final_norm(encoder: FoldedEncoder, x):
    return _normalise(x) * encoder.final_norm.kernel + encoder.final_norm.bias


def _dense(config, affine: Affine, x):
    rows = x.reshape(-1, x.shape[-1])
    y = jnp.dot(rows, affine.kernel, precision=precision_of(config.compute_dtype)) + affine.bias
    return y.reshape(*x.shape[:-1], -1)


def _split_heads(config, x):
    return x.reshape(*x.shape[:-1], config.num_heads, -1)


def _einsum(config, formula, a, b, dtype=None):
    return jnp.einsum(formula, a, b, precision=precision_of(config.compute_dtype), preferred_element_type=dtype)
