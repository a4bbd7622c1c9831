"""The Conformer-CTC encoder of Granite Speech.

Conformer blocks (https://arxiv.org/abs/2005.08100) whose attention stays inside fixed blocks of
frames and carries Shaw's relative positions (https://arxiv.org/abs/1803.02155), with
self-conditioning on the CTC posteriors at mid depth (https://arxiv.org/abs/2104.02724).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError, UnsupportedOptionError
from ...fields import fitted
from ...layers.activations import glu, silu
from ...layers.attention import merge_heads, scaled_dot_product_attention, split_heads
from ...layers.model_output import ModelOutput, asked, can_return_tuple
from ...layers.token_ids import check_array
from ..config import (
    DERIVED,
    Factor,
    Frames,
    LayerCount,
    PretrainedConfig,
    Probability,
    VocabSize,
    Width,
)

BLANK = 0  #: label of a CTC head that stands for nothing


@dataclass(kw_only=True)
class GraniteSpeechEncoderConfig(PretrainedConfig):
    """Configuration of the encoder.

    cat_hidden_layers: blocks (1-based, 0 is the input) whose outputs stand before the last one's in
        the result; of the Plus variant.
    """

    model_type: ClassVar[str] = "granite_speech_encoder"
    other_types: ClassVar[tuple[str, ...]] = ("granite_speech_plus_encoder",)
    part_of_config: ClassVar[str | None] = "encoder_config"
    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_mel_bins": "input_dim",
    }

    input_dim: Width = 160
    num_layers: LayerCount = 10
    hidden_dim: Width = 1024
    feedforward_mult: Factor = 4
    num_heads: Factor = 8
    dim_head: Width = DERIVED
    output_dim: VocabSize = 42
    context_size: Frames = 200
    max_pos_emb: Frames = 512
    dropout: Probability = 0.1
    conv_kernel_size: Frames = 15
    conv_expansion_factor: Factor = 2
    cat_hidden_layers: list[int] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.dim_head is None:
            self._check_multiple("hidden_dim", "num_heads")
            self.dim_head = self.hidden_dim // self.num_heads
        if self.context_size > self.max_pos_emb:
            rule = f"at most max_pos_emb, {self.max_pos_emb}"
            raise InputError.must_be("context_size", self.context_size, rule)
        if any(not 0 <= index < self.num_layers for index in self.cat_hidden_layers or []):
            rule = f"of blocks 0 to {self.num_layers - 1}"
            raise InputError.must_be("cat_hidden_layers", self.cat_hidden_layers, rule)

    @property
    def output_size(self) -> int:
        """Width of the encoder's result."""
        return self.hidden_dim * (1 + len(set(self.cat_hidden_layers or [])))


@dataclass(kw_only=True)
class GraniteSpeechPlusEncoderConfig(GraniteSpeechEncoderConfig):
    """The same under the name that the Plus variant has for it."""

    model_type: ClassVar[str] = "granite_speech_plus_encoder"
    other_types: ClassVar[tuple[str, ...]] = ("granite_speech_encoder",)


@dataclass(eq=False)
class GraniteSpeechEncoderOutput(ModelOutput):
    """What the encoder returns.

    last_hidden_state: (batch, frames, output size), zero at padding frames of a batch.
    pooler_output: the projected audio, (batch, audio tokens, hidden_size of the decoder), where
        `get_audio_features` returns this.
    hidden_states: on request, the first block's input, each block's output, and
        `last_hidden_state` in place of the last one's.
    attentions: always None, attention here being within blocks of frames.
    non_blank: (batch, frames), float32; the probability that the character head, at mid depth,
        gives to anything but the blank. Ones where there is a single block; zero at padding.
    ctc_logits: (batch, frames, output_dim) of the character head; costs nothing unless evaluated.
    """

    last_hidden_state: mx.array = field(kw_only=True)
    pooler_output: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
    non_blank: mx.array = field(kw_only=True)
    ctc_logits: mx.array = field(kw_only=True)


class FrameMask:
    """Which frames of a batch are real, in the two forms the blocks need.

    Args:
        num_frames: length of the batch.
        context_size: frames of an attention block.
        lengths: (batch,) real frames of each recording; `None` when all are full length.
    """

    def __init__(self, num_frames: int, context_size: int, lengths: mx.array | None):
        self.frames: mx.array | None = None
        self.keys: mx.array | None = None
        if lengths is None and num_frames % context_size == 0:
            return
        ends = mx.array([[num_frames]]) if lengths is None else lengths[:, None]
        valid = mx.arange(num_frames + -num_frames % context_size) < ends
        self.keys = valid.reshape(len(valid), -1, 1, 1, context_size)
        if lengths is not None:
            self.frames = valid[:, :num_frames, None]

    def zero_padding(self, x: mx.array) -> mx.array:
        """(batch, frames, width) with zeros at the padding."""
        return x if self.frames is None else mx.where(self.frames, x, mx.zeros((), x.dtype))


class FeedForward(nn.Module):
    def __init__(self, config: GraniteSpeechEncoderConfig):
        super().__init__()
        dim, inner = config.hidden_dim, config.hidden_dim * config.feedforward_mult
        self.pre_norm = nn.LayerNorm(dim)
        self.up_proj = nn.Linear(dim, inner)
        self.down_proj = nn.Linear(inner, dim)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(self, x):
        inner = self.dropout(silu(self.up_proj(self.pre_norm(x))))
        return self.dropout(self.down_proj(inner))


class BlockAttention(nn.Module):
    """Attention within blocks of `context_size` frames, with Shaw's relative positions."""

    def __init__(self, config: GraniteSpeechEncoderConfig):
        super().__init__()
        dim, head_dim = config.hidden_dim, config.dim_head
        inner = config.num_heads * head_dim
        self.num_heads, self.context_size = config.num_heads, config.context_size
        self.max_pos_emb = config.max_pos_emb
        self.scale = head_dim**-0.5
        self.pre_norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim)
        self.rel_pos_emb = nn.Embedding(2 * config.max_pos_emb + 1, head_dim)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(self, x: mx.array, mask: FrameMask) -> mx.array:
        batch, num_frames, _ = x.shape
        x = mx.pad(self.pre_norm(x), [(0, 0), (0, -num_frames % self.context_size), (0, 0)])
        blocks = x.reshape(-1, self.context_size, x.shape[-1])
        queries = split_heads(self.to_q(blocks), self.num_heads)
        keys, values = (split_heads(t, self.num_heads) for t in self.to_kv(blocks).split(2, -1))
        bias = self.relative_bias(queries)
        if mask.keys is not None:
            lowest = mx.finfo(bias.dtype).min
            bias = bias.reshape(batch, -1, *bias.shape[1:])
            bias = mx.where(mask.keys, bias, mx.array(lowest, bias.dtype)).flatten(0, 1)
        out = scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=bias)
        out = merge_heads(out).reshape(batch, -1, out.shape[1] * out.shape[3])
        return self.dropout(self.to_out(out[:, :num_frames]))

    def relative_bias(self, queries: mx.array) -> mx.array:
        """Scaled scores of each query with the embedding of its distance to each key.

        With the table's rows for the distances C-1 .. -(C-1), one product gives every query's score
        for every distance; key j of query i then stands in column C-1-i+j, so that the square of
        scores is a view whose rows start one column earlier each.

        Args:
            queries: (blocks, heads, C, head_dim).

        Returns:
            (blocks, heads, C, C).
        """
        size = self.context_size
        distances = mx.arange(self.max_pos_emb + size - 1, self.max_pos_emb - size, -1)
        table = self.rel_pos_emb(distances).astype(queries.dtype) * self.scale
        by_distance = queries @ table.T
        blocks, heads, _, columns = by_distance.shape
        strides = (heads * size * columns, size * columns, columns - 1, 1)
        return mx.as_strided(by_distance, (blocks, heads, size, size), strides, size - 1)


class DepthwiseConv(nn.Module):
    """Depthwise convolution over time that keeps the length; BatchNorm is folded into it."""

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        self.weight = mx.zeros((channels, kernel_size, 1))
        self.bias = mx.zeros((channels,))

    def init_own_weights(self, std: float) -> None:
        """See `init_weights`."""
        self.weight = mx.random.normal(self.weight.shape, scale=std)

    @property
    def halo(self) -> tuple[int, int]:
        """Frames before and after its own that a frame's result depends on."""
        kernel_size = self.weight.shape[1]
        return kernel_size // 2, kernel_size - 1 - kernel_size // 2

    def __call__(self, x: mx.array, halo: bool = False) -> mx.array:
        """(batch, frames, channels); with `halo`, these frames stand on both sides of `x` already,
        and are missing in the result. Otherwise zeros are what is beyond the ends."""
        if not halo:
            x = mx.pad(x, [(0, 0), self.halo, (0, 0)])
        if mx.default_device().type == mx.DeviceType.cpu:
            return _sum_of_shifts(x, self.weight, self.bias)
        return mx.conv1d(x, self.weight, groups=x.shape[-1]) + self.bias


@mx.compile
def _sum_of_shifts(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """A depthwise convolution as one fused loop: MLX's own is several times slower on a CPU."""
    kernel_size = weight.shape[1]
    length = x.shape[1] - kernel_size + 1
    total = bias.astype(mx.float32)
    for shift in range(kernel_size):
        total = total + x[:, shift : shift + length] * weight[:, shift, 0].astype(mx.float32)
    return total.astype(x.dtype)


class ConvModule(nn.Module):
    def __init__(self, config: GraniteSpeechEncoderConfig):
        super().__init__()
        dim, inner = config.hidden_dim, config.hidden_dim * config.conv_expansion_factor
        self.norm = nn.LayerNorm(dim)
        self.up_conv = nn.Linear(dim, 2 * inner)
        self.depth_conv = DepthwiseConv(inner, config.conv_kernel_size)
        self.down_conv = nn.Linear(inner, dim)
        self.dropout = nn.Dropout(config.dropout)

    def gate(self, x: mx.array) -> mx.array:
        """The half before the convolution: (batch, frames, width) -> (batch, frames, inner)."""
        return glu(self.up_conv(self.norm(x)))

    def __call__(self, gated: mx.array, halo: bool = False) -> mx.array:
        """The convolution, see there, and what is after it."""
        return self.dropout(self.down_conv(silu(self.depth_conv(gated, halo))))


class ConformerBlock(nn.Module):
    def __init__(self, config: GraniteSpeechEncoderConfig):
        super().__init__()
        self.ff1 = FeedForward(config)
        self.attn = BlockAttention(config)
        self.conv = ConvModule(config)
        self.ff2 = FeedForward(config)
        self.post_norm = nn.LayerNorm(config.hidden_dim)

    def __call__(self, x: mx.array, mask: FrameMask) -> mx.array:
        x, gated = self.attend(x, mask)
        # zeros beyond a recording's end are what the convolution sees when it is alone
        return self.convolve(x, mask.zero_padding(gated))

    def attend(self, x: mx.array, mask: FrameMask) -> tuple[mx.array, mx.array]:
        """The half that looks at whole attention blocks: its result, and the same gated for the
        convolution."""
        x = x + 0.5 * self.ff1(x)
        x = x + self.attn(x, mask)
        return x, self.conv.gate(x)

    def convolve(self, x: mx.array, gated: mx.array, halo: bool = False) -> mx.array:
        """The half that looks at neighbouring frames; `gated` has more of them with `halo`."""
        x = x + self.conv(gated, halo)
        x = x + 0.5 * self.ff2(x)
        return self.post_norm(x)


class GraniteSpeechCTCEncoder(nn.Module):
    def __init__(self, config: GraniteSpeechEncoderConfig):
        super().__init__()
        self.config = config
        self.input_linear = nn.Linear(config.input_dim, config.hidden_dim)
        self.layers = [ConformerBlock(config) for _ in range(config.num_layers)]
        self.out = nn.Linear(config.hidden_dim, config.output_dim)
        self.out_mid = nn.Linear(config.output_dim, config.hidden_dim)

    @can_return_tuple
    def __call__(
        self,
        hidden_states: mx.array,
        feature_lengths: mx.array | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> GraniteSpeechEncoderOutput:
        """Encode stacked log-mel frames, 50 a second.

        Args:
            hidden_states: (batch, frames, input_dim), the input features.
            feature_lengths: (batch,) real frames of each recording of a padded batch. Each then
                gets what it gets alone; the reference implementation lets padding leak.
            output_attentions: cannot be True.

        Raises:
            InputError: the shapes are wrong, or there are no such lengths.
            UnsupportedOptionError: attention weights are asked for.
        """
        if fitted("output_attentions", output_attentions, bool | None):
            message = "{option}: the encoder attends within blocks of frames, and gives no weights"
            raise UnsupportedOptionError.about(message, option="output_attentions")
        shape = "recordings", "frames", self.config.input_dim
        features = check_array(hidden_states, "input_features", mx.floating, shape)
        batch, num_frames, _ = features.shape
        lengths = feature_lengths
        if lengths is not None:
            lengths = check_array(lengths, "feature_lengths", mx.integer, (batch,))
            if not 0 < mx.min(lengths).item() <= mx.max(lengths).item() <= num_frames:
                rule = f"within 1 and {num_frames}, the frames of input_features"
                raise InputError.must_be("feature_lengths", lengths.tolist(), rule)
        mask = FrameMask(num_frames, self.config.context_size, lengths)
        states, non_blank = [self.embed(features)], mx.ones(features.shape[:2])
        for number, layer in enumerate(self.layers, start=1):
            x = layer(states[-1], mask)
            if number == self.middle:
                x, non_blank = self.condition(x)
            states.append(x)
        exported = [states[number] for number in sorted(set(self.config.cat_hidden_layers or []))]
        hidden = mask.zero_padding(mx.concatenate([*exported, states[-1]], axis=-1))
        shown = asked(self.config, "output_hidden_states", output_hidden_states)
        return GraniteSpeechEncoderOutput(
            last_hidden_state=hidden,
            hidden_states=(*states[:-1], hidden) if shown else None,
            non_blank=mask.zero_padding(non_blank[..., None])[..., 0],
            ctc_logits=self.out(states[-1]),
        )

    def embed(self, input_features: mx.array) -> mx.array:
        """What the first block gets, in the model's dtype: (batch, frames, hidden_dim)."""
        return self.input_linear(input_features.astype(self.layers[0].post_norm.weight.dtype))

    @property
    def middle(self) -> int:
        """Number of the block, 1 the first, whose result is conditioned; 0 if there is none."""
        return len(self.layers) // 2

    def condition(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """The middle block's result with the CTC posteriors added, and the probability in these of
        anything but the blank, (batch, frames) in float32."""
        posteriors = mx.softmax(self.out(x).astype(mx.float32), axis=-1)
        return x + self.out_mid(posteriors.astype(x.dtype)), 1.0 - posteriors[..., BLANK]


_BATCH_NORM_EPS = 1e-5


def sanitize_encoder(weights: dict[str, mx.array], prefix: str) -> dict[str, mx.array]:
    """The encoder's checkpoint tensors in this module's layouts.

    Convolutions of width 1 become linear layers, and each BatchNorm, at inference a scale and a
    shift per channel, becomes part of the depthwise convolution before it. Applied to tensors that
    already have these layouts it changes nothing; conversions by mlx-audio have MLX's layouts of
    convolutions, (out, k, in), and separate BatchNorms.
    """
    result = {}
    for name, value in weights.items():
        if not name.startswith(prefix) or ".conv." not in name:
            result[name] = value
        elif name.endswith((".up_conv.weight", ".down_conv.weight")) and 1 in value.shape[1:]:
            result[name] = value.flatten(1)
        elif name.endswith(".depth_conv.conv.weight") and value.ndim == 3:
            conv = name.removesuffix(".conv.weight")
            kernel = value.swapaxes(1, 2) if value.shape[1] == 1 else value
            folded = _fold_batch_norm(kernel, weights, conv.removesuffix("depth_conv"))
            result[conv + ".weight"], result[conv + ".bias"] = folded
        elif ".batch_norm." not in name:
            result[name] = value
    return result


def _fold_batch_norm(kernel: mx.array, weights: dict[str, mx.array], prefix: str):
    """(channels, k, 1) kernel and (channels,) bias that include the BatchNorm at `prefix`.

    In float32 whatever the checkpoint's type: rounding comes once, after folding.
    """
    parts = ("weight", "bias", "running_mean", "running_var")
    statistics = [weights[f"{prefix}batch_norm.{p}"].astype(mx.float32) for p in parts]
    for part, value in zip(parts, statistics, strict=True):
        if value.shape != kernel.shape[:1]:
            raise ValueError(f"{prefix}batch_norm.{part} {value.shape} for {len(kernel)} channels")
    gain, shift, mean, variance = statistics
    factor = gain * mx.rsqrt(variance + _BATCH_NORM_EPS)
    folded = kernel.astype(mx.float32) * factor[:, None, None]
    return folded, shift - mean * factor


def encoder_to_checkpoint(weights: dict[str, mx.array], prefix: str) -> dict[str, mx.array]:
    """The inverse of `sanitize_encoder`, of tensors of whole modules.

    What a BatchNorm did is in the convolution before it, so that the one in the checkpoint only
    adds the bias.
    """
    result = {}
    for name, value in weights.items():
        conv, _, part = name.removeprefix(prefix).rpartition("conv.")
        if not name.startswith(prefix) or not conv:
            result[name] = value
        elif conv.endswith(("up_", "down_")) and part == "weight":
            result[name] = value[..., None]
        elif not conv.endswith("depth_"):
            result[name] = value
        elif part == "weight":
            result[name.replace("depth_conv.", "depth_conv.conv.")] = value.swapaxes(1, 2)
        else:
            norm = name.replace("depth_conv.bias", "batch_norm.")
            ones = mx.ones_like(value)
            statistics = {"running_mean": 0 * ones, "running_var": ones * (1 - _BATCH_NORM_EPS)}
            parts = {"weight": ones, "bias": value, **statistics}
            result |= {f"{norm}{part}": array for part, array in parts.items()}
            result[f"{norm}num_batches_tracked"] = mx.array(0, mx.int64)
    return result
