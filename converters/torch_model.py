"""The PyTorch twin of teacher and student: plain PyTorch with the released names, and our inputs and features.

`--verify`, the tests and the benchmarks compare with it. Nothing else imports torch.
Architecture: VocaLiST (Kadandale et al. 2022, arXiv 2204.02090) at the teacher's widths, MTDVocaLiST
(Chen et al. 2024, arXiv 2210.15563) at the student's.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEACHER_WIDTHS = (32, 64, 128, 256, 512)
STUDENT_WIDTHS = (16, 32, 64, 128, 200)

Shape = int | tuple[int, ...]  # of a kernel, stride or padding; an integer for all axes
# (input, output, kernel, stride, padding, residual). Input and output are indices into the widths; -1 is the input
# of the network. Video axes are (H, W, T), audio axes (mel, time). Two strides depend on the model and have names.
VIDEO_BLOCKS: tuple[tuple[int, int, Shape, Shape | str, Shape, bool], ...] = (
    (-1, 0, 7, "stem", 3, False),
    (0, 1, 5, (1, 2, 1), (1, 1, 2), False),
    *[(1, 1, 3, 1, 1, True)] * 2,
    (1, 2, 3, (2, 2, 1), 1, False),
    *[(2, 2, 3, 1, 1, True)] * 3,
    (2, 3, 3, (2, 2, 1), 1, False),
    *[(3, 3, 3, 1, 1, True)] * 2,
    (3, 4, 3, (2, 2, 1), 1, False),
    *[(4, 4, 3, 1, 1, True)] * 2,
    (4, 4, 3, "last", 1, False),
    (4, 4, 3, 1, (0, 0, 1), False),
    (4, 4, 1, 1, 0, False),
)
AUDIO_BLOCKS: tuple[tuple[int, int, Shape, Shape, Shape, bool], ...] = (
    (-1, 0, 3, 1, 1, False),
    *[(0, 0, 3, 1, 1, True)] * 2,
    (0, 1, 3, (3, 1), 1, False),
    *[(1, 1, 3, 1, 1, True)] * 2,
    (1, 2, 3, (3, 1), 1, False),
    *[(2, 2, 3, 1, 1, True)] * 2,
    (2, 3, 3, (3, 1), 1, False),
    *[(3, 3, 3, 1, 1, True)] * 2,
    (3, 4, 3, 1, (0, 1), False),
    (4, 4, 1, 1, 0, False),
)


class TorchFeatures(NamedTuple):
    """Tokens (batch, time, width); logits of "fusion", "av", "va": (layers, batch, heads, query, key)."""

    video_tokens: Tensor
    audio_tokens: Tensor
    av_tokens: Tensor
    va_tokens: Tensor
    fusion_tokens: Tensor
    attention_logits: dict[str, Tensor]
    value_logits: dict[str, Tensor]


class ConvBlock(nn.Module):
    """Convolution → BatchNorm → (+ input) → ReLU."""

    def __init__(
        self,
        conv: Callable[..., nn.Module],
        norm: Callable[[int], nn.Module],
        in_channels: int,
        out_channels: int,
        kernel: Shape,
        stride: Shape,
        padding: Shape,
        residual: bool,
    ):
        super().__init__()
        self.conv_block = nn.Sequential(
            conv(in_channels, out_channels, kernel, stride, padding), norm(out_channels)
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_block(x)
        return F.relu(y + x if self.residual else y)


def _prenet(
    conv: Callable[..., nn.Module],
    norm: Callable[[int], nn.Module],
    blocks: Iterable[tuple[int, int, Shape, Shape, Shape, bool]],
    in_channels: int,
    widths: Sequence[int],
) -> nn.Sequential:
    return nn.Sequential(
        *[
            ConvBlock(
                conv, norm, in_channels if i < 0 else widths[i], widths[o], kernel, stride, padding, residual
            )
            for i, o, kernel, stride, padding, residual in blocks
        ]
    )


class SinusoidalPositions(nn.Module):
    """[sin | cos] of positions 1, 2, …; zero where channel 0 of a token is exactly 0, as the public code does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("_float_tensor", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        dtype = torch.promote_types(x.dtype, torch.float32)  # autocast does not lower it
        index = torch.arange(half, dtype=dtype, device=x.device)
        position = torch.arange(1, x.shape[1] + 1, dtype=dtype, device=x.device)
        angle = position[:, None] * torch.exp(index * (-math.log(10000) / (half - 1)))
        table = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return table.to(x.dtype) * (x[..., :1] != 0)


class CrossAttention(nn.Module):
    """Multi-head attention with one packed q|k|v projection. Returns output, attention logits and value logits."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (  # each (batch, heads, time, depth)
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((queries, source, source), weights, biases, strict=True)
        )
        scale = q.shape[-1] ** -0.5
        q_len, k_len = q.shape[2], k.shape[2]
        hidden = torch.ones(q_len, k_len, dtype=torch.bool, device=q.device).triu(1 + abs(q_len - k_len))
        attention_logits = ((q * scale) @ k.mT).masked_fill(hidden, -math.inf)
        value_logits = v @ v.mT * scale
        output = self.out_proj((attention_logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return output, attention_logits, value_logits


class EncoderLayer(nn.Module):
    """Pre-LN layer; its first LayerNorm normalises both the stream and the source."""

    def __init__(self, width: int, num_heads: int, relu_dropout: float, residual_dropout: float):
        super().__init__()
        self.self_attn = CrossAttention(width, num_heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.layer_norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.relu_dropout, self.residual_dropout = relu_dropout, residual_dropout

    def forward(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        norm = self.layer_norms[0]
        y, attention_logits, value_logits = self.self_attn(norm(x), norm(source))
        x = x + F.dropout(y, self.residual_dropout, self.training)
        y = F.dropout(F.relu(self.fc1(self.layer_norms[1](x))), self.relu_dropout, self.training)
        x = x + F.dropout(self.fc2(y), self.residual_dropout, self.training)
        return x, attention_logits, value_logits


class CrossModalEncoder(nn.Module):
    """A stack of layers. The keys and values of each come from the embedded source, not from the stream."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_layers: int,
        embedding_dropout: float,
        relu_dropout: float,
        residual_dropout: float,
    ):
        super().__init__()
        self.register_buffer("version", torch.full((1,), 2.0))
        self.embed_positions = SinusoidalPositions()
        self.layers = nn.ModuleList(
            [EncoderLayer(width, num_heads, relu_dropout, residual_dropout) for _ in range(num_layers)]
        )
        self.layer_norm = nn.LayerNorm(width)
        self.embedding_dropout = embedding_dropout

    def _embed(self, x: Tensor) -> Tensor:
        x = math.sqrt(x.shape[-1]) * x + self.embed_positions(x)
        return F.dropout(x, self.embedding_dropout, self.training)

    def forward(self, queries: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, source = self._embed(queries), self._embed(source)
        attention_logits, value_logits = [], []
        for layer in self.layers:
            x, attention, values = layer(x, source)
            attention_logits.append(attention)
            value_logits.append(values)
        return self.layer_norm(x), torch.stack(attention_logits), torch.stack(value_logits)


class TorchSyncModel(nn.Module):
    """Teacher (`TEACHER_WIDTHS`) or student (`STUDENT_WIDTHS`), with random weights until a state dict is loaded.

    Args:
      pixels: the convention that the weights expect, "rgb255", "rgb01" or "bgr01".
      stem_stride, last_stride: (height, width) of the first and of the last down-sampling video convolution.

    The other arguments are those of `ModelConfig`.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int, int],
        pixels: str,
        num_heads: int = 8,
        num_layers: int = 4,
        stem_stride: tuple[int, int] = (1, 1),
        last_stride: tuple[int, int] = (2, 2),
        embedding_dropout: float = 0.25,
        relu_dropout: float = 0.1,
        residual_dropout: float = 0.1,
    ):
        super().__init__()
        if pixels not in ("rgb255", "rgb01", "bgr01"):
            raise ValueError(f"pixels must be rgb255, rgb01 or bgr01, got {pixels!r}")
        self.pixels = pixels
        width = widths[-1]
        encoder = (width, num_heads, num_layers, embedding_dropout, relu_dropout, residual_dropout)
        named = {"stem": (*stem_stride, 1), "last": (*last_stride, 1)}
        video_blocks = [
            (i, o, kernel, named[stride] if isinstance(stride, str) else stride, padding, residual)
            for i, o, kernel, stride, padding, residual in VIDEO_BLOCKS
        ]
        self.vid_prenet = _prenet(nn.Conv3d, nn.BatchNorm3d, video_blocks, 3, widths)
        self.aud_prenet = _prenet(nn.Conv2d, nn.BatchNorm2d, AUDIO_BLOCKS, 1, widths)
        self.av_transformer = CrossModalEncoder(*encoder)
        self.va_transformer = CrossModalEncoder(*encoder)
        self.mem_transformer = CrossModalEncoder(*encoder)
        self.fc = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 1)

    def scale_pixels(self, frames: Tensor) -> Tensor:
        """uint8 RGB (batch, T, H, W, 3) → float (batch, 3, H, W, T) in the pixel convention of the weights."""
        x = frames.permute(0, 4, 2, 3, 1)
        x = x if x.is_floating_point() else x.float()
        x = x.flip(1) if self.pixels == "bgr01" else x
        return x if self.pixels == "rgb255" else x / 255

    def forward(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, TorchFeatures]:
        """Frames uint8 RGB (batch, T, 48, 96, 3) and mel (batch, 3.2·T, 80) → logits (batch,) and features."""
        video = self.vid_prenet(self.scale_pixels(frames)).flatten(2).mT  # 1×1 in space: (batch, T, width)
        audio = self.aud_prenet(mel.mT[:, None]).squeeze(2).mT
        av, av_attention, av_values = self.av_transformer(audio, video)
        va, va_attention, va_values = self.va_transformer(video, audio)
        fusion, fusion_attention, fusion_values = self.mem_transformer(av, va)
        # Not amax: its gradient compares with values that torch.compile recomputes, under bfloat16 autocast
        # without the rounding. Then none is equal, and 0/0 makes all gradients below NaN (torch 2.13).
        largest = fusion.max(1).values
        logits = self.classifier(torch.tanh(self.fc(largest))).squeeze(-1)
        attention_logits = {"fusion": fusion_attention, "av": av_attention, "va": va_attention}
        value_logits = {"fusion": fusion_values, "av": av_values, "va": va_values}
        return logits, TorchFeatures(video, audio, av, va, fusion, attention_logits, value_logits)
