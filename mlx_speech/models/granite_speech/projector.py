"""The projector: a Q-Former (https://arxiv.org/abs/2301.12597) over windows of encoder frames.

Module names are those of the checkpoints (BLIP-2's, after BERT).
"""

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ...fields import TokenId
from ...layers.attention import merge_heads, scaled_dot_product_attention, split_heads
from ...layers.token_ids import check_array
from ..config import (
    Deviation,
    Epsilon,
    Factor,
    LayerCount,
    Positions,
    PretrainedConfig,
    Probability,
    VocabSize,
    Width,
)


@dataclass(kw_only=True)
class Blip2QFormerConfig(PretrainedConfig):
    """Configuration of the Q-Former; defaults are those of transformers, not of any checkpoint.

    It has neither a vocabulary nor positions here: `vocab_size`, `max_position_embeddings` and
    `pad_token_id` are kept, and change nothing.
    """

    model_type: ClassVar[str] = "blip_2_qformer"
    part_of_config: ClassVar[str | None] = "projector_config"

    vocab_size: VocabSize = 30522
    hidden_size: Width = 768
    num_hidden_layers: LayerCount = 12
    num_attention_heads: Factor = 12
    intermediate_size: Width = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: Positions = 512
    initializer_range: Deviation = 0.02
    pad_token_id: TokenId | None = 0
    layer_norm_eps: Epsilon = 1e-12
    cross_attention_frequency: LayerCount = 2
    encoder_hidden_size: Width = 1408
    use_qformer_text_input: bool = False

    def __post_init__(self):
        super().__post_init__()
        self._check_multiple("hidden_size", "num_attention_heads")
        self._check_choice("hidden_act", ("gelu",))
        if self.use_qformer_text_input:
            raise InputError.must_be("use_qformer_text_input", True, "false")


class MultiHeadAttention(nn.Module):
    def __init__(self, config: Blip2QFormerConfig, source_size: int):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(source_size, config.hidden_size)
        self.value = nn.Linear(source_size, config.hidden_size)

    def __call__(self, x, source):
        projected = self.query(x), self.key(source), self.value(source)
        queries, keys, values = (split_heads(t, self.num_heads) for t in projected)
        # the learned queries are the same for every window until they have looked at one
        queries = mx.broadcast_to(queries, (keys.shape[0], *queries.shape[1:]))
        scale = queries.shape[-1] ** -0.5
        dropout = self.dropout if self.training else 0.0
        out = scaled_dot_product_attention(queries, keys, values, scale=scale, dropout=dropout)
        return merge_heads(out)


class ResidualOutput(nn.Module):
    """Projection, residual and norm at the end of each sublayer (post-norm)."""

    def __init__(self, input_size: int, config: Blip2QFormerConfig):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, x, residual):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class AttentionSublayer(nn.Module):
    def __init__(self, config: Blip2QFormerConfig, source_size: int):
        super().__init__()
        self.attention = MultiHeadAttention(config, source_size)
        self.output = ResidualOutput(config.hidden_size, config)

    def __call__(self, x, source):
        return self.output(self.attention(x, source), x)


class QFormerLayer(nn.Module):
    def __init__(self, config: Blip2QFormerConfig, index: int):
        super().__init__()
        self.attention = AttentionSublayer(config, config.hidden_size)
        if index % config.cross_attention_frequency == 0:
            self.crossattention = AttentionSublayer(config, config.encoder_hidden_size)
        self.intermediate_query = nn.Module()  # as is the encoder of a `QFormer`
        self.intermediate_query.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_query = ResidualOutput(config.intermediate_size, config)

    def __call__(self, x, frames):
        x = self.attention(x, x)
        if "crossattention" in self:
            x = self.crossattention(x, frames)
        return self.output_query(nn.gelu(self.intermediate_query.dense(x)), x)


class QFormer(nn.Module):
    def __init__(self, config: Blip2QFormerConfig):
        super().__init__()
        self.config = config
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.encoder = nn.Module()  # it is only there for the names
        self.encoder.layer = [QFormerLayer(config, i) for i in range(config.num_hidden_layers)]

    def __call__(self, queries, frames):
        x = self.dropout(self.layernorm(queries))
        for layer in self.encoder.layer:
            x = layer(x, frames)
        return x


class WindowedProjector(nn.Module):
    """Turns every `window_size` encoder frames into `window_size // downsample_rate` tokens.

    Args:
        config: the Q-Former's.
        output_size: width of the text decoder.
    """

    def __init__(
        self, config: Blip2QFormerConfig, window_size: int, downsample_rate: int, output_size: int
    ):
        super().__init__()
        self.window_size, self.input_size = window_size, config.encoder_hidden_size
        self.query = mx.zeros((1, window_size // downsample_rate, config.hidden_size))
        self.qformer = QFormer(config)
        self.linear = nn.Linear(config.hidden_size, output_size)

    def init_own_weights(self, std: float) -> None:
        """See `init_weights`; the queries are drawn with a deviation of their own, 1."""
        self.query = mx.random.normal(self.query.shape)

    def __call__(self, hidden_states: mx.array) -> mx.array:
        """(batch, frames, encoder size) -> (batch, audio tokens, output size).

        Raises:
            InputError: the encoder has another size, or these are no such states.
        """
        shape = "recordings", "frames", "encoder_hidden_size"
        states = check_array(hidden_states, "hidden_states", mx.floating, shape)
        batch, num_frames, width = states.shape
        if width != self.input_size:
            rule = f"as wide as what the encoder gives, {width}"
            raise InputError.must_be("encoder_hidden_size", self.input_size, rule)
        padding = -num_frames % self.window_size
        windows = mx.pad(states, [(0, 0), (0, padding), (0, 0)])
        tokens = self.qformer(self.query, windows.reshape(-1, self.window_size, width))
        return self.linear(tokens.reshape(batch, -1, tokens.shape[-1]))
