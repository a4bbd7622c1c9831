"""The Conformer-CTC encoder of Granite Speech: Conformer blocks with self-conditioning on the CTC
posteriors at mid depth (https://arxiv.org/abs/2104.02724)."""

from dataclasses import dataclass, field
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ...layers.activations import glu, silu
from ...layers.model_output import ModelOutput, asked, can_return_tuple
from ...layers.token_ids import check_array
from ..config import (
    DERIVED,
    Deviation,
    Factor,
    Frames,
    LayerCount,
    PretrainedConfig,
    Probability,
    VocabSize,
    Width,
)
from ..conformer import (
    BLANK,
    BlockAttention,
    ConformerBlock,
    DepthwiseConv,
    FrameMask,
    batch_norm_of_bias,
    fold_batch_norm,
    refuse_attentions,
)


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
    initializer_range: Deviation = 0.02
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


class Attention(BlockAttention):
    def __init__(self, config: GraniteSpeechEncoderConfig):
        dim, heads, head_dim = config.hidden_dim, config.num_heads, config.dim_head
        super().__init__(heads, head_dim, config.context_size, config.max_pos_emb)
        inner = heads * head_dim
        self.pre_norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim)
        self.dropout = nn.Dropout(config.dropout)

    def project(self, x):
        return self.to_q(x), *self.to_kv(x).split(2, -1)

    def __call__(self, x: mx.array, mask: FrameMask) -> mx.array:
        return self.dropout(self.to_out(self.attend(self.pre_norm(x), mask)))


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


class GraniteSpeechConformerBlock(ConformerBlock):
    def __init__(self, config: GraniteSpeechEncoderConfig):
        super().__init__()
        self.ff1 = FeedForward(config)
        self.attn = Attention(config)
        self.conv = ConvModule(config)
        self.ff2 = FeedForward(config)
        self.post_norm = nn.LayerNorm(config.hidden_dim)

    @property
    def depthwise(self) -> DepthwiseConv:
        return self.conv.depth_conv

    def attend(self, x, mask):
        x = x + 0.5 * self.ff1(x)
        x = x + self.attn(x, mask)
        return x, self.conv.gate(x)

    def convolve(self, x, gated, halo=False):
        x = x + self.conv(gated, halo)
        x = x + 0.5 * self.ff2(x)
        return self.post_norm(x)


class GraniteSpeechCTCEncoder(nn.Module):
    """Conformer blocks over log-mel frames; what a CTC head says in the middle joins them."""

    def __init__(self, config: GraniteSpeechEncoderConfig):
        super().__init__()
        self.config = config
        self.input_linear = nn.Linear(config.input_dim, config.hidden_dim)
        self.layers = [GraniteSpeechConformerBlock(config) for _ in range(config.num_layers)]
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
        refuse_attentions(output_attentions)
        shape = "recordings", "frames", self.config.input_dim
        features = check_array(hidden_states, "input_features", mx.floating, shape)
        batch, num_frames, _ = features.shape
        lengths = feature_lengths
        if lengths is not None:
            lengths = check_array(lengths, "feature_lengths", mx.integer, (batch,))
            if not 0 < mx.min(lengths).item() <= mx.max(lengths).item() <= num_frames:
                rule = f"within 1 and {num_frames}, the frames of input_features"
                raise InputError.must_be("feature_lengths", lengths.tolist(), rule)
        shown = asked(self.config, "output_hidden_states", output_hidden_states)
        return self.encode(features, lengths, shown)

    def encode(
        self,
        features: mx.array,
        lengths: mx.array | None = None,
        output_hidden_states: bool = False,
    ) -> GraniteSpeechEncoderOutput:
        """The same where nothing is checked, so nothing is waited for and it can be compiled;
        arguments as in the call."""
        mask = FrameMask(features.shape[1], self.config.context_size, lengths)
        states, non_blank = [self.embed(features)], mx.ones(features.shape[:2])
        for number, layer in enumerate(self.layers, start=1):
            x = layer(states[-1], mask)
            if number == self.middle:
                x, non_blank = self.condition(x)
            states.append(x)
        exported = [states[number] for number in sorted(set(self.config.cat_hidden_layers or []))]
        hidden = mask.zero_padding(mx.concatenate([*exported, states[-1]], axis=-1))
        return GraniteSpeechEncoderOutput(
            last_hidden_state=hidden,
            hidden_states=(*states[:-1], hidden) if output_hidden_states else None,
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
            folded = fold_batch_norm(kernel, weights, f"{conv[:-10]}batch_norm")
            result[conv + ".weight"], result[conv + ".bias"] = folded
        elif ".batch_norm." not in name:
            result[name] = value
    return result


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
            result |= batch_norm_of_bias(value, name.replace("depth_conv.bias", "batch_norm"))
    return result
