"""VocaLiST (teacher) and MTDVocaLiST (student): one network, `SyncModel`, from one frozen `ModelConfig`.

VocaLiST: Kadandale et al., Interspeech 2022, arXiv 2204.02090.
MTDVocaLiST: Chen et al., ICASSP 2024, arXiv 2210.15563.
"""

import dataclasses
import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num, UInt8

from mtd_jax.errors import UserError
from mtd_jax.network.layers import CrossModalEncoder, Linear, Rngs, at_least_float32, audio_prenet, video_prenet
from mtd_jax.network.towers import TwoTowers

FRAME_SHAPE = (48, 96, 3)
NUM_MEL = 80
PIXELS = ("rgb255", "rgb01", "bgr01")
FUSIONS = ("transformers", "none")
ENCODERS = ("fusion", "av", "va")  # the order of MTD's layers
# Of windows of T frames and S mel columns, S = 3.2·T for a training window.
Frames = UInt8[Array | np.ndarray, "batch T 48 96 3"]  # RGB, whatever the weights' own convention
Mel = Float[Array | np.ndarray, "batch S 80"]
VideoTokens = Float[Array, "batch T width"]
AudioTokens = Float[Array, "batch S width"]
Logits = Float[Array, " batch"]  # at least float32; positive = in sync


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes the network.

    Attributes:
      widths: channels of the five stages of both prenets; the last is the width of the transformers.
      num_heads, num_layers: of each of the three encoders.
      window_frames: T, the frames of a window; the network itself takes any T.
      pixels: what the weights expect: "rgb255" (RGB in [0, 255]), "rgb01" or "bgr01" (in [0, 1]).
      stem_stride: (height, width) stride of the first video convolution.
      last_stride: (height, width) stride of the last down-sampling one, video block 14.
      embedding_dropout, relu_dropout, residual_dropout, attention_dropout: rates in [0, 1).
      zero_tokens_lose_position: quirk of the released code: a token whose channel 0 is 0 gets no position.
      compute_dtype: "float32" or "bfloat16", with float32 parameters and statistics in both; "float64", for exact
        comparisons under `jax_enable_x64`, with float64 ones.
      fusion: what compares the prenets' tokens: "transformers", as published, or "none", two towers whose vectors
        a cosine compares (`towers.py`); then `num_heads`, `num_layers` and the dropout rates mean nothing.
    """

    widths: tuple[int, int, int, int, int]
    num_heads: int = 8
    num_layers: int = 4
    window_frames: int = 5
    pixels: str = "rgb255"
    stem_stride: tuple[int, int] = (1, 1)
    last_stride: tuple[int, int] = (2, 2)
    embedding_dropout: float = 0.25
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1
    attention_dropout: float = 0.0
    zero_tokens_lose_position: bool = True
    compute_dtype: str = "float32"
    fusion: str = "transformers"

    def __post_init__(self):
        for name in ("widths", "stem_stride", "last_stride"):  # JSON and ConfigDict bring lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.widths) != 5 or min(self.widths) < 1:
            raise UserError(f"model.widths: expected five positive integers, got {self.widths}")
        if self.num_heads < 1:
            raise UserError(f"model.num_heads: expected at least 1, got {self.num_heads}")
        if self.width % 2 or self.width % self.num_heads or self.width < 4:
            raise UserError(
                f"model.widths: expected the last to be even and a multiple of num_heads={self.num_heads}, "
                f"got {self.width}"
            )
        if self.pixels not in PIXELS:
            raise UserError(f"model.pixels: expected one of {', '.join(PIXELS)}, got {self.pixels!r}")
        if self.fusion not in FUSIONS:
            raise UserError(f"model.fusion: expected one of {', '.join(FUSIONS)}, got {self.fusion!r}")
        dtypes = ("float32", "bfloat16", *(["float64"] if jax.config.values["jax_enable_x64"] else []))
        if self.compute_dtype not in dtypes:
            raise UserError(f"model.compute_dtype: expected {' or '.join(dtypes)}, got {self.compute_dtype!r}")
        if self.window_frames < 1 or self.num_layers < 1:
            raise UserError(
                "model: window_frames and num_layers must be at least 1, "
                f"got {self.window_frames} and {self.num_layers}"
            )
        strides = (*self.stem_stride, *self.last_stride)
        if (
            len(self.stem_stride) != 2
            or len(self.last_stride) != 2
            or min(strides) < 1
            or self._final_size() != (1, 1)
        ):
            raise UserError(
                "model.stem_stride and last_stride: expected (1, 1) and (2, 2), or (2, 2) and (1, 1), which "
                f"bring 48×96 pixels to 1×1, got {self.stem_stride} and {self.last_stride}"
            )
        for name in ("embedding_dropout", "relu_dropout", "residual_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name}: expected a rate in [0, 1), got {getattr(self, name)}")

    def _final_size(self) -> tuple[int, int]:
        """Height and width after the video prenet's strided blocks: kernel, padding, strides."""
        blocks = [
            (7, 3, self.stem_stride),
            (5, 1, (1, 2)),
            *[(3, 1, (2, 2))] * 3,
            (3, 1, self.last_stride),
            (3, 0, (1, 1)),
        ]
        height, width, _ = FRAME_SHAPE
        for kernel, padding, (down, across) in blocks:
            height = (height + 2 * padding - kernel) // down + 1
            width = (width + 2 * padding - kernel) // across + 1
        return height, width

    @property
    def width(self) -> int:
        return self.widths[-1]

    @classmethod
    def vocalist(cls, **changes: Any) -> "ModelConfig":
        """The teacher, 80,106,561 parameters. The released weights expect BGR in [0, 1]."""
        return cls(**{"widths": (32, 64, 128, 256, 512), "pixels": "bgr01"} | changes)

    @classmethod
    def mtd_vocalist(cls, **changes: Any) -> "ModelConfig":
        """The student, 13,280,961 parameters. The released weights expect RGB in [0, 255]."""
        return cls(**{"widths": (16, 32, 64, 128, 200), "pixels": "rgb255"} | changes)

    @classmethod
    def tiny(cls, **changes: Any) -> "ModelConfig":
        """A student for laptops and tests, about 0.4 M parameters; half-resolution stem."""
        small = {"widths": (8, 8, 16, 24, 32), "stem_stride": (2, 2), "last_stride": (1, 1), "pixels": "rgb01"}
        return cls(**small | changes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """What the network computed on the way. Dictionaries have the keys "fusion", "av" (A→V) and "va" (V→A).

    Attributes:
      attention_logits: after scaling and mask, before the softmax.
      value_logits: V·Vᵀ·head_dim^-½.

    Of two towers there are no relations (both dictionaries are empty). Their vectors stand for the encoders'
    tokens, (batch, T, width): `av_tokens` is that of the audio, `va_tokens` that of the video, both of length 1,
    and `fusion_tokens` their product, whose sum is the cosine.
    """

    video_tokens: VideoTokens
    audio_tokens: AudioTokens
    av_tokens: AudioTokens
    va_tokens: VideoTokens
    fusion_tokens: AudioTokens
    attention_logits: dict[str, Float[Array, "layers batch heads query key"]]
    value_logits: dict[str, Float[Array, "layers batch heads key key"]]


def scale_pixels(frames: Num[Array | np.ndarray, "*batch 3"], pixels: str) -> Float[Array, "*batch 3"]:
    """RGB in [0, 255] → float32 (float64 if that comes in) in the convention `pixels` of the weights."""
    x = jnp.asarray(frames)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if pixels == "bgr01":
        x = x[..., ::-1]
    return x if pixels == "rgb255" else x / 255


class SyncModel(nnx.Module):
    """Scores whether a window of mouth frames and a window of audio are in sync."""

    def __init__(self, config: ModelConfig, *, seed: int | None = 0):
        """A freshly initialised network: He-normal convolutions, Xavier-uniform dense kernels, zero biases.

        Args:
          seed: of the initial kernels; None leaves them zero, see `abstract_model`.
        """
        rng = None if seed is None else np.random.default_rng(seed)
        self.config = config
        self.video_prenet = video_prenet(config, rng)
        self.audio_prenet = audio_prenet(config, rng)
        if config.fusion == "none":
            self.towers = TwoTowers(config, rng)
        else:
            self.av_encoder = CrossModalEncoder(config, rng)
            self.va_encoder = CrossModalEncoder(config, rng)
            self.fusion_encoder = CrossModalEncoder(config, rng)
            self.head = Linear(config.width, config.width, config.compute_dtype, rng)
            self.classifier = Linear(config.width, 1, config.compute_dtype, rng)
        if config.compute_dtype == "float64":
            nnx.update(self, jax.tree.map(lambda x: x.astype(jnp.float64), nnx.state(self)))

    @overload
    def __call__(self, frames: Frames, mel: Mel, *, train: bool = ..., rngs: Rngs = ...) -> Logits: ...
    @overload
    def __call__(
        self, frames: Frames, mel: Mel, *, train: bool = ..., rngs: Rngs = ..., return_features: Literal[True]
    ) -> tuple[Logits, Features]: ...
    def __call__(
        self, frames: Frames, mel: Mel, *, train: bool = False, rngs: Rngs = None, return_features: bool = False
    ) -> Logits | tuple[Logits, Features]:
        """Scores pairs of windows.

        Args:
          train: use batch statistics (and update the running ones) and dropout.
          rngs: `nnx.Rngs(dropout=…)`, needed when training with dropout.
          return_features: also return `Features`.

        Raises:
          ValueError: if a shape, or the dtype of the frames, is another.
        """
        if train:
            logits, features = self._forward(frames, mel, train, rngs)
        else:
            logits, features = _evaluate(*nnx.split(self), frames, mel)
        return (logits, features) if return_features else logits

    def _forward(self, frames: Frames, mel: Mel, train: bool, rngs: Rngs) -> tuple[Logits, Features]:
        video_tokens = self.encode_video(frames, train=train)
        audio_tokens = self.encode_audio(mel, train=train)
        return self.compare(video_tokens, audio_tokens, train=train, rngs=rngs)

    def encode_video(self, frames: Frames, *, train: bool = False) -> VideoTokens:
        """Raises `ValueError` for another shape or dtype."""
        if frames.ndim != 5 or frames.shape[2:] != FRAME_SHAPE or frames.dtype != jnp.uint8:
            raise ValueError(
                f"frames: expected uint8 (batch, T, 48, 96, 3), got {frames.dtype} {tuple(frames.shape)}; "
                "pass the lower half of the 96×96 face crop as RGB, without scaling"
            )
        return self.encode_pixels(jnp.asarray(frames, jnp.float32), train=train)

    def encode_pixels(self, pixels: Float[Array, "batch T 48 96 3"], *, train: bool = False) -> VideoTokens:
        """`encode_video` of frames that are real numbers, RGB in [0, 255]: for gradients. Nothing is checked."""
        x = scale_pixels(pixels, self.config.pixels).astype(self.config.compute_dtype)
        return self.video_prenet(jnp.moveaxis(x, 1, 3), train)[:, 0, 0]

    def encode_audio(self, mel: Mel, *, train: bool = False) -> AudioTokens:
        """Raises `ValueError` for another shape."""
        if mel.ndim != 3 or mel.shape[2] != NUM_MEL:
            raise ValueError(f"mel: expected (batch, S, 80), got {tuple(mel.shape)}; see mtd_jax.log_mel")
        x = jnp.swapaxes(mel, 1, 2)[..., None].astype(self.config.compute_dtype)
        return self.audio_prenet(x, train)[:, 0]

    def compare(
        self, video_tokens: VideoTokens, audio_tokens: AudioTokens, *, train: bool = False, rngs: Rngs = None
    ) -> tuple[Logits, Features]:
        """Scores pairs of windows by their tokens."""
        if self.config.fusion == "none":
            return self._compare_towers(video_tokens, audio_tokens)
        av_tokens, *av = self.av_encoder(audio_tokens, video_tokens, train, rngs)
        va_tokens, *va = self.va_encoder(video_tokens, audio_tokens, train, rngs)
        fusion_tokens, *fusion = self.fusion_encoder(av_tokens, va_tokens, train, rngs)
        # By index: the gradient of `max` compares recomputed values, and where rounding differs it is 0/0.
        largest = jnp.argmax(fusion_tokens, axis=1, keepdims=True)
        summary = jnp.take_along_axis(fusion_tokens, largest, axis=1)[:, 0]
        logits = self.classifier(jnp.tanh(self.head(summary)))[:, 0]
        relations = {"fusion": fusion, "av": av, "va": va}
        features = Features(
            *(at_least_float32(t) for t in (video_tokens, audio_tokens, av_tokens, va_tokens, fusion_tokens)),
            attention_logits={name: r[0] for name, r in relations.items()},
            value_logits={name: r[1] for name, r in relations.items()},
        )
        return at_least_float32(logits), features

    def _compare_towers(self, video_tokens: VideoTokens, audio_tokens: AudioTokens) -> tuple[Logits, Features]:
        logits, video, audio = self.towers(video_tokens, audio_tokens)
        tokens = (at_least_float32(t) for t in (video_tokens, audio_tokens, audio, video, video * audio))
        return at_least_float32(logits), Features(*tokens, attention_logits={}, value_logits={})


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(graphdef: nnx.GraphDef, state: nnx.State, frames: Frames, mel: Mel) -> tuple[Logits, Features]:
    """Compiled as a whole: called from outside jit, op by op, a forward pass would take many times as long."""
    return nnx.merge(graphdef, state)._forward(frames, mel, train=False, rngs=None)


def abstract_model(config: ModelConfig) -> SyncModel:
    """A model whose arrays are shapes and dtypes alone: nothing is drawn or allocated."""
    return nnx.eval_shape(lambda: SyncModel(config, seed=None))


def count_parameters(model: SyncModel) -> int:
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
