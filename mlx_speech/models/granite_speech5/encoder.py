"""The encoder of Granite Speech 5.0: Conformer blocks, two of which halve the frames, with
self-conditioning on the CTC posteriors at mid depth (https://arxiv.org/abs/2104.02724)."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ...layers.activations import ACTIVATIONS, glu, silu
from ...layers.model_output import ModelOutput, asked, can_return_tuple
from ...layers.token_ids import check_array, real_frames
from ..conformer import (
    BlockAttention,
    ConformerBlock,
    DepthwiseConv,
    FrameMask,
    batch_norm_of_bias,
    fold_batch_norm,
    refuse_attentions,
)
from .config import GraniteSpeech5EncoderConfig


@dataclass(eq=False)
class GraniteSpeech5EncoderModelOutput(ModelOutput):
    """What the encoder returns.

    last_hidden_state: (batch, frames, hidden_size), 12.5 frames a second; without meaning at the
        padding of a batch.
    hidden_states: on request, the first block's input and each block's output.
    attentions: always None, attention here being within blocks of frames.
    attention_mask: (batch, frames), 0 at padding.
    """

    last_hidden_state: mx.array | None = None
    pooler_output: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None
    attention_mask: mx.array | None = None


class FeedForward(nn.Module):
    def __init__(self, config: GraniteSpeech5EncoderConfig):
        super().__init__()
        sizes = config.hidden_size, config.intermediate_size
        self.linear1 = nn.Linear(*sizes, bias=config.attention_bias)
        self.linear2 = nn.Linear(*reversed(sizes), bias=config.attention_bias)
        self.hidden_act = config.hidden_act  # by its name: a compiled function cannot be copied
        self.dropout = nn.Dropout(config.activation_dropout)

    def __call__(self, x):
        return self.linear2(self.dropout(ACTIVATIONS[self.hidden_act](self.linear1(x))))


class Attention(BlockAttention):
    def __init__(self, config: GraniteSpeech5EncoderConfig):
        heads, head_dim = config.num_attention_heads, config.head_dim
        super().__init__(heads, head_dim, config.context_size, config.max_position_embeddings)
        dim, inner = config.hidden_size, heads * head_dim
        self.q_proj = nn.Linear(dim, inner, bias=False)
        self.k_proj = nn.Linear(dim, inner, bias=False)
        self.v_proj = nn.Linear(dim, inner, bias=False)
        self.o_proj = nn.Linear(inner, dim)

    def project(self, x):
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def __call__(self, x: mx.array, mask: FrameMask) -> mx.array:
        return self.o_proj(self.attend(x, mask))


class ConvModule(nn.Module):
    def __init__(self, config: GraniteSpeech5EncoderConfig, stride: int):
        super().__init__()
        dim, inner = config.hidden_size, config.hidden_size * config.conv_expansion_factor
        self.pointwise_lin1 = nn.Linear(dim, 2 * inner)
        self.depthwise_conv = DepthwiseConv(inner, config.conv_kernel_size, stride)
        self.pointwise_lin2 = nn.Linear(inner, dim)

    def gate(self, x: mx.array) -> mx.array:
        """The half before the convolution: (batch, frames, width) -> (batch, frames, inner)."""
        return glu(self.pointwise_lin1(x))

    def __call__(self, gated: mx.array, halo: bool = False) -> mx.array:
        """The convolution, see there, and what is after it."""
        return self.pointwise_lin2(silu(self.depthwise_conv(gated, halo)))


class GraniteSpeech5EncoderBlock(ConformerBlock):
    """A Conformer block; with a stride of 2 it halves the frames."""

    def __init__(self, config: GraniteSpeech5EncoderConfig, stride: int):
        super().__init__()
        self.feed_forward1 = FeedForward(config)
        self.self_attn = Attention(config)
        self.conv = ConvModule(config, stride)
        self.feed_forward2 = FeedForward(config)
        for part in ("feed_forward1", "self_att", "conv", "feed_forward2", "out"):
            self[f"norm_{part}"] = nn.LayerNorm(config.hidden_size)

    @property
    def depthwise(self) -> DepthwiseConv:
        return self.conv.depthwise_conv

    def attend(self, x, mask):
        x = x + 0.5 * self.feed_forward1(self.norm_feed_forward1(x))
        x = x + self.self_attn(self.norm_self_att(x), mask)
        return x, self.conv.gate(self.norm_conv(x))

    def convolve(self, x, gated, halo=False):
        x = _means(x, self.depthwise.stride) + self.conv(gated, halo)
        x = x + 0.5 * self.feed_forward2(self.norm_feed_forward2(x))
        return self.norm_out(x)


def _means(x: mx.array, stride: int) -> mx.array:
    """Means of every `stride` frames, without fewer at the end: (batch, frames, width)."""
    if stride == 1:
        return x
    batch, frames, width = x.shape
    number = frames // stride
    return x[:, : number * stride].reshape(batch, number, stride, width).mean(axis=2)


class GraniteSpeech5Encoder(nn.Module):
    """Conformer blocks, some of which halve the frames; what a CTC head says in the middle joins
    them."""

    def __init__(self, config: GraniteSpeech5EncoderConfig):
        super().__init__()
        self.config = config
        self.input_linear = nn.Linear(config.input_size, config.hidden_size)
        strides = [1 + (i in config.subsample_layers) for i in range(config.num_hidden_layers)]
        self.layers = [GraniteSpeech5EncoderBlock(config, stride) for stride in strides]
        self.out = nn.Linear(config.hidden_size, config.vocab_size)
        self.out_mid = nn.Linear(config.vocab_size, config.hidden_size)

    @can_return_tuple
    def __call__(
        self,
        input_features: mx.array,
        attention_mask: mx.array | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> GraniteSpeech5EncoderModelOutput:
        """Encode features, 50 frames a second, to 12.5 a second. What is left over at the end,
        fewer than four frames, gives no frame.

        Args:
            input_features: (batch, frames, 4 * num_mel_bins).
            attention_mask: (batch, frames), ones and then zeros at the padding. Each recording of a
                batch then gets what it gets alone.
            output_attentions: cannot be True.

        Raises:
            InputError: the shapes are wrong, or the mask is none.
            UnsupportedOptionError: attention weights are asked for.
        """
        refuse_attentions(output_attentions)
        shape = "recordings", "frames", self.config.input_size
        features = check_array(input_features, "input_features", mx.floating, shape)
        real = real_frames(attention_mask, *features.shape[:2])
        lengths = None if real is None else real.sum(axis=1)
        shown = asked(self.config, "output_hidden_states", output_hidden_states)
        x = self.embed(features)
        states = [x]
        for number, layer in enumerate(self.layers, start=1):
            if x.shape[1]:
                x = layer(x, FrameMask(x.shape[1], self.config.context_size, lengths))
            if shown:
                states.append(x)
            if number == self.middle:
                x = self.condition(x)
            if lengths is not None:
                lengths = lengths // layer.depthwise.stride
        ends = mx.full((len(x),), x.shape[1]) if lengths is None else lengths
        return GraniteSpeech5EncoderModelOutput(
            last_hidden_state=x,
            hidden_states=(*states[:-1], x) if shown else None,
            attention_mask=(mx.arange(x.shape[1]) < ends[:, None]).astype(mx.int32),
        )

    def embed(self, input_features: mx.array) -> mx.array:
        """What the first block gets, in the model's dtype: (batch, frames, hidden_size)."""
        return self.input_linear(input_features.astype(self.layers[0].norm_out.weight.dtype))

    @property
    def middle(self) -> int:
        """Number of the block, 1 the first, whose result is conditioned; 0 if there is none."""
        return len(self.layers) // 2

    def condition(self, x: mx.array) -> mx.array:
        """The middle block's result with the CTC posteriors added."""
        posteriors = mx.softmax(self.out(x).astype(mx.float32), axis=-1)
        return x + self.out_mid(posteriors.astype(x.dtype))


_KERNEL, _NORM = ".conv.depthwise_conv.", ".conv.norm."


def sanitize_encoder(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The encoder's checkpoint tensors in this module's layouts: each BatchNorm becomes part of the
    depthwise convolution before it. Applied to tensors that already have these layouts it changes
    nothing; conversions by mlx-audio have MLX's layout of kernels, (out, k, in)."""
    result = {}
    for name, value in weights.items():
        block, is_kernel, _ = name.partition(f"{_KERNEL}weight")
        if is_kernel and f"{block}{_KERNEL}bias" not in weights:
            if value.ndim != 3:
                raise ValueError(f"{name} {value.shape}, where a kernel has three axes")
            kernel = value.swapaxes(1, 2) if value.shape[1] == 1 else value
            folded = fold_batch_norm(kernel, weights, block + _NORM.removesuffix("."))
            result[name], result[f"{block}{_KERNEL}bias"] = folded
        elif _NORM not in name:
            result[name] = value
    return result


def encoder_to_checkpoint(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The inverse of `sanitize_encoder`, of tensors of whole modules."""
    result: dict[str, mx.array] = {}
    for name, value in weights.items():
        block, is_conv, part = name.partition(_KERNEL)
        if is_conv and part == "bias":
            result |= batch_norm_of_bias(value, block + _NORM.removesuffix("."))
        else:
            result[name] = value.swapaxes(1, 2) if is_conv else value
    return result
