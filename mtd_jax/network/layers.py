"""The building blocks of the network: convolution block, the two prenets, the cross-modal encoder.

Every block computes in `compute_dtype`; parameters are float32, normalisation statistics and everything that
reaches a loss at least that (`at_least_float32`). Convolutions and dot products ask for full precision unless in
bfloat16, since an accelerator's default would silently be less.

Each module draws its own kernels, one after the other from the generator that it is given, by NumPy: the same on
every backend, and nothing to compile (JAX would compile a program for each of some sixty shapes).
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Shaped

from mtd_jax.network.conv3d import conv3d

if TYPE_CHECKING:
    from mtd_jax.network.model import ModelConfig

EPSILON = 1e-5
_BATCH_NORM_MOMENTUM = 0.1  # in PyTorch's sense: the weight of the new batch


# Where random kernels come from. None: zeros, for a model whose shapes alone are wanted, or that a caller fills.
Draws = np.random.Generator | None
Rngs = nnx.Rngs | None  # for dropout
Queries = Float[Array, "batch q width"]
Source = Float[Array, "batch k width"]
# New queries; attention logits, after scaling and mask, before the softmax; value logits. Logits are float32.
Read = tuple[Queries, Float[Array, "batch heads q k"], Float[Array, "batch heads k k"]]
ReadByLayers = tuple[Queries, Float[Array, "layers batch heads q k"], Float[Array, "layers batch heads k k"]]


def he_normal(rng: Draws, shape: tuple[int, ...]) -> Float[Array, "*window width_in width_out"]:
    """From N(0, 2 / fan_in), for layers followed by ReLU (He et al. 2015)."""
    if rng is None:
        return jnp.zeros(shape, jnp.float32)
    return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / math.prod(shape[:-1]))))


def xavier_uniform(rng: Draws, shape: tuple[int, int]) -> Float[Array, "width_in width_out"]:
    """From U(−a, a), a² = 6 / (in + out) (Glorot & Bengio 2010)."""
    if rng is None:
        return jnp.zeros(shape, jnp.float32)
    limit = math.sqrt(6 / sum(shape))
    return jnp.asarray(rng.uniform(-limit, limit, shape).astype(np.float32))


def precision_of(compute_dtype: str) -> lax.Precision | None:
    return None if compute_dtype == "bfloat16" else lax.Precision.HIGHEST


def at_least_float32(x: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class BatchNorm(nnx.Module):
    """Normalises over all axes but the last, as PyTorch does: the running variance is the unbiased one.

    Under a sharded jit the batch axis is the global batch, so the statistics are those of the global batch.
    """

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(width, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(width, jnp.float32))

    def __call__(self, x: Float[Array, "*batch channels"], train: bool) -> Float[Array, "*batch channels"]:
        if not train:
            return _scaled(x, self.scale[...], self.bias[...], self.mean[...], self.var[...])
        y, mean, var = batch_normalised(x, self.scale[...], self.bias[...])
        count = x.size // x.shape[-1]
        for running, new in ((self.mean, mean), (self.var, var * (count / max(count - 1, 1)))):
            old = running[...]
            running[...] += (_BATCH_NORM_MOMENTUM * (lax.stop_gradient(new) - old)).astype(old.dtype)
        return y


@jax.custom_vjp
def batch_normalised(x: Array, scale: Array, bias: Array) -> tuple[Array, Array, Array]:
    """Normalises `x` over all axes but the last; also returns mean and (biased) variance, (channels,) each.

    The gradient is written out: derived by JAX it reads and writes arrays of the size of `x` several times more.
    Mean and variance count as constants in it, as they do for their one user.
    """
    return _batch_normalised_forward(x, scale, bias)[0]


def _batch_normalised_forward(x, scale, bias):
    wide = at_least_float32(x)
    count = x.size // x.shape[-1]
    mean = _column_sums(wide) / count
    var = _column_sums(jnp.square(wide - mean)) / count
    return (_scaled(x, scale, bias, mean, var), mean, var), (x, scale, mean, var)


def _batch_normalised_backward(saved, cotangents):
    x, scale, mean, var = saved
    dy = at_least_float32(cotangents[0])
    inverse = lax.rsqrt(var + EPSILON)
    centred = at_least_float32(x) - mean
    d_bias, d_scale = _column_sums(dy), _column_sums(dy * centred) * inverse
    count = x.size // x.shape[-1]
    dx = scale * inverse * (dy - d_bias / count - centred * (inverse * d_scale / count))
    return dx.astype(x.dtype), d_scale, d_bias


batch_normalised.defvjp(_batch_normalised_forward, _batch_normalised_backward)


def _scaled(x, scale, bias, mean, var):
    factor = scale * lax.rsqrt(var + EPSILON)
    return x * factor.astype(x.dtype) + (bias - mean * factor).astype(x.dtype)


def _column_sums(x):
    """(…, channels) → (channels,). On CPU a product with ones is several times as fast as a sum."""

    def product(x):
        rows = x.reshape(math.prod(x.shape[: x.ndim // 2]), -1)
        sums = jnp.dot(jnp.ones((1, len(rows)), x.dtype), rows, precision=lax.Precision.HIGHEST)
        return jnp.sum(sums.reshape(-1, x.shape[-1]), axis=0)

    return lax.platform_dependent(x, cpu=product, default=lambda x: jnp.sum(x, axis=tuple(range(x.ndim - 1))))


class Conv(nnx.Module):
    """Weights of a convolution: kernel (k_height, k_width[, k_time], in, out) and bias (out,)."""

    def __init__(self, shape: tuple[int, ...], rng: Draws):
        self.kernel = nnx.Param(he_normal(rng, shape))
        self.bias = nnx.Param(jnp.zeros(shape[-1], jnp.float32))


class ConvBlock(nnx.Module):
    """Convolution → BatchNorm → (+ input) → ReLU, in 2-D (audio) or 3-D (video; stride 1 over time)."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: tuple[int, ...],
        stride: tuple[int, int],
        padding: tuple[int, ...],
        residual: bool,
        compute_dtype: str,
        rng: Draws,
    ):
        self.conv = Conv((*kernel, *channels), rng)
        self.norm = BatchNorm(channels[1])
        self.stride, self.padding, self.residual = stride, padding, residual
        self.compute_dtype = compute_dtype

    def __call__(
        self, x: Float[Array, "batch *space width_in"], train: bool
    ) -> Float[Array, "batch *out_space width_out"]:
        kernel = self.conv.kernel[...].astype(x.dtype)
        precision = precision_of(self.compute_dtype)
        if kernel.ndim == 5:
            y = conv3d(x, kernel, self.stride, self.padding, precision)
        else:
            y = lax.conv_general_dilated(
                x,
                kernel,
                self.stride,
                [(p, p) for p in self.padding],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=precision,
            )
        y = self.norm(y + self.conv.bias[...].astype(x.dtype), train)
        return nnx.relu(y + x if self.residual else y)


class Prenet(nnx.Module):
    """A chain of convolution blocks that reduces all but the time axis to 1."""

    def __init__(self, blocks: Iterable[ConvBlock]):
        self.blocks = nnx.List(blocks)

    def __call__(
        self, x: Float[Array, "batch *space time width_in"], train: bool
    ) -> Float[Array, "batch *ones time width"]:
        for block in self.blocks:
            x = block(x, train)
        return x


def video_prenet(config: "ModelConfig", rng: Draws) -> Prenet:
    """(batch, 48, 96, T, 3) → (batch, 1, 1, T, width), 17 blocks (docs/method.md, section 2)."""
    w0, w1, w2, w3, w4 = config.widths
    half, last = (2, 2), config.last_stride
    residual, same = True, (1, 1)
    table = [  # channels, kernel (h, w, t), stride (h, w), padding (h, w, t), residual
        ((3, w0), (7, 7, 7), config.stem_stride, (3, 3, 3), not residual),
        ((w0, w1), (5, 5, 5), (1, 2), (1, 1, 2), not residual),
        *[((w1, w1), (3, 3, 3), same, (1, 1, 1), residual)] * 2,
        ((w1, w2), (3, 3, 3), half, (1, 1, 1), not residual),
        *[((w2, w2), (3, 3, 3), same, (1, 1, 1), residual)] * 3,
        ((w2, w3), (3, 3, 3), half, (1, 1, 1), not residual),
        *[((w3, w3), (3, 3, 3), same, (1, 1, 1), residual)] * 2,
        ((w3, w4), (3, 3, 3), half, (1, 1, 1), not residual),
        *[((w4, w4), (3, 3, 3), same, (1, 1, 1), residual)] * 2,
        ((w4, w4), (3, 3, 3), last, (1, 1, 1), not residual),
        ((w4, w4), (3, 3, 3), same, (0, 0, 1), not residual),
        ((w4, w4), (1, 1, 1), same, (0, 0, 0), not residual),
    ]
    return Prenet([ConvBlock(*row, config.compute_dtype, rng) for row in table])


def audio_prenet(config: "ModelConfig", rng: Draws) -> Prenet:
    """(batch, 80 mel, S, 1) → (batch, 1, S, width), 14 blocks (docs/method.md, section 2)."""
    w0, w1, w2, w3, w4 = config.widths
    residual, same, third = True, (1, 1), (3, 1)
    table = [((1, w0), (3, 3), same, (1, 1), not residual), *[((w0, w0), (3, 3), same, (1, 1), residual)] * 2]
    for wide, wider in ((w0, w1), (w1, w2), (w2, w3)):
        table.append(((wide, wider), (3, 3), third, (1, 1), not residual))
        table.extend([((wider, wider), (3, 3), same, (1, 1), residual)] * 2)
    table.append(((w3, w4), (3, 3), same, (0, 1), not residual))
    table.append(((w4, w4), (1, 1), same, (0, 0), not residual))
    return Prenet([ConvBlock(*row, config.compute_dtype, rng) for row in table])


class Linear(nnx.Module):
    """Dense layer, kernel (in, out) and bias (out,), over rows in two dimensions.

    XLA's CPU gradient of a product with more leading axes takes more than twice as long.
    """

    def __init__(self, width_in: int, width_out: int, compute_dtype: str, rng: Draws):
        self.kernel = nnx.Param(xavier_uniform(rng, (width_in, width_out)))
        self.bias = nnx.Param(jnp.zeros(width_out, jnp.float32))
        self.compute_dtype = compute_dtype

    def __call__(
        self, x: Float[Array, "*rows width_in"], columns: slice = slice(None)
    ) -> Float[Array, "*rows width_out"]:
        """Args: columns: of the output, those to compute."""
        kernel, bias = (p[...][..., columns].astype(x.dtype) for p in (self.kernel, self.bias))
        rows = x.reshape(-1, x.shape[-1])
        y = jnp.dot(rows, kernel, precision=precision_of(self.compute_dtype)) + bias
        return y.reshape(*x.shape[:-1], y.shape[-1])


def sinusoidal_positions(length: int, width: int) -> Float[np.ndarray, "length width"]:
    """float32, [sin | cos] halves, positions counted from 1 (Vaswani et al. 2017)."""
    half = width // 2
    rate = np.exp(np.arange(half) * -(np.log(10_000.0) / (half - 1)))
    angle = np.arange(1, length + 1)[:, None] * rate
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def attention_mask(queries: int, keys: int) -> Float[np.ndarray, "queries keys"]:
    """Additive mask: −inf above the diagonal 1 + |queries − keys|, else 0."""
    offset = 1 + abs(queries - keys)
    return np.triu(np.full((queries, keys), -np.inf, np.float32), offset)


class CrossAttention(nnx.Module):
    """Multi-head attention with a packed in-projection; also returns the two relations that MTD distils."""

    def __init__(self, config: "ModelConfig", rng: Draws):
        width = config.width
        self.in_proj = Linear(width, 3 * width, config.compute_dtype, rng)  # query | key | value
        self.out_proj = Linear(width, width, config.compute_dtype, rng)
        self.dropout = nnx.Dropout(config.attention_dropout)
        self.num_heads = config.num_heads
        self.precision = precision_of(config.compute_dtype)

    def __call__(self, queries: Queries, source: Source, train: bool, rngs: Rngs) -> Read:
        """The value logits are V·Vᵀ·head_dim^-½ (Wang et al. 2020)."""
        width = queries.shape[-1]
        q = self._split_heads(self.in_proj(queries, slice(width)))
        kv = self.in_proj(source, slice(width, None))
        k, v = (self._split_heads(x) for x in jnp.split(kv, 2, axis=-1))
        scale = q.shape[-1] ** -0.5
        attention_logits = self._relation(q * jnp.asarray(scale, q.dtype), k)
        attention_logits += attention_mask(q.shape[1], k.shape[1])
        value_logits = self._relation(v, v) * scale
        weights = jax.nn.softmax(attention_logits).astype(v.dtype)
        weights = self.dropout(weights, deterministic=not train, rngs=rngs)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision=self.precision)
        return self.out_proj(mixed.reshape(queries.shape)), attention_logits, value_logits

    def _split_heads(self, x):
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def _relation(self, a, b):
        dtype = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.einsum("bqhd,bkhd->bhqk", a, b, precision=self.precision, preferred_element_type=dtype)


class EncoderLayer(nnx.Module):
    """Pre-LN layer; keys and values are the encoder's input source, normalised by the LayerNorm of the queries."""

    def __init__(self, config: "ModelConfig", rng: Draws):
        width = config.width
        self.attention_norm = _layer_norm(config)
        self.attention = CrossAttention(config, rng)
        self.feedforward_norm = _layer_norm(config)
        self.fc1 = Linear(width, 4 * width, config.compute_dtype, rng)
        self.fc2 = Linear(4 * width, width, config.compute_dtype, rng)
        self.relu_dropout = nnx.Dropout(config.relu_dropout)
        self.residual_dropout = nnx.Dropout(config.residual_dropout)

    def __call__(self, x: Queries, source: Source, train: bool, rngs: Rngs) -> Read:
        mode: dict[str, Any] = {"deterministic": not train, "rngs": rngs}
        y, attention_logits, value_logits = self.attention(
            self.attention_norm(x), self.attention_norm(source), train, rngs
        )
        x = x + self.residual_dropout(y, **mode)
        y = self.relu_dropout(nnx.relu(self.fc1(self.feedforward_norm(x))), **mode)
        x = x + self.residual_dropout(self.fc2(y), **mode)
        return x, attention_logits, value_logits


class CrossModalEncoder(nnx.Module):
    """A stack of layers in which one modality (the query) reads the other (the source)."""

    def __init__(self, config: "ModelConfig", rng: Draws):
        self.layers = nnx.List([EncoderLayer(config, rng) for _ in range(config.num_layers)])
        self.final_norm = _layer_norm(config)
        self.embedding_dropout = nnx.Dropout(config.embedding_dropout)
        self.skip_zero_tokens = config.zero_tokens_lose_position

    def __call__(self, queries: Queries, source: Source, train: bool = False, rngs: Rngs = None) -> ReadByLayers:
        x, source = self._embed(queries, train, rngs), self._embed(source, train, rngs)
        relations = []
        for layer in self.layers:
            x, *logits = layer(x, source, train, rngs)
            relations.append(logits)
        attention_logits, value_logits = (jnp.stack(r) for r in zip(*relations, strict=True))
        return self.final_norm(x), attention_logits, value_logits

    def _embed(self, tokens, train, rngs):
        positions = sinusoidal_positions(*tokens.shape[1:]).astype(tokens.dtype)
        if self.skip_zero_tokens:
            # The released code takes channel 0 for a token id and 0 for padding, which has no position.
            positions = jnp.where(tokens[..., :1] == 0, 0, positions)
        embedded = tokens * jnp.asarray(tokens.shape[-1] ** 0.5, tokens.dtype) + positions
        return self.embedding_dropout(embedded, deterministic=not train, rngs=rngs)


def normalised(x: Shaped[Array, "*rows width"], epsilon: float = EPSILON) -> Shaped[Array, "*rows width"]:
    """LayerNorm without scale and bias, computed in float32 at least."""
    wide = at_least_float32(x)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    return (centred * lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


def _layer_norm(config: "ModelConfig") -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.width, epsilon=EPSILON, dtype=config.compute_dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
