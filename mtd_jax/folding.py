"""A model's weights as inference uses them: normalisations folded into the layers beside them, on the host."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtd_jax.layers import EPSILON, CrossModalEncoder, Linear, Prenet
from mtd_jax.model import SyncModel

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
        head=_dense(model.head),
        classifier=_dense(model.classifier),
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
        kernel, bias = _dense(attention.in_proj, layer.attention_norm)
        width = kernel.shape[0]
        scale = np.float32((width // attention.num_heads) ** -0.5)
        layers.append(
            FoldedLayer(
                query=Affine(kernel[:, :width] * scale, bias[:width] * scale),
                key_value=Affine(kernel[:, width:], bias[width:]),
                out=_dense(attention.out_proj),
                fc1=_dense(layer.fc1, layer.feedforward_norm),
                fc2=_dense(layer.fc2),
            )
        )
    norm = encoder.final_norm
    return FoldedEncoder(layers, Affine(np.asarray(norm.scale[...]), np.asarray(norm.bias[...])))


def _dense(linear: Linear, norm=None) -> Affine:
    """`linear`, after `norm` if there is one: (x·scale + shift) W + b = x (scale W) + (shift W + b)."""
    kernel, bias = np.asarray(linear.kernel[...]), _numbers(linear.bias)
    if norm is None:
        return Affine(kernel, bias)
    scale = np.asarray(norm.scale[...])
    return Affine(kernel * scale[:, None], bias + _numbers(norm.bias) @ kernel)


def _numbers(parameter) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)
