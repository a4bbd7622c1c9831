"""The one decoder-only transformer. Each family's file says only what differs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypedDict

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from ..fields import TokenId
from ..layers.activations import ACTIVATIONS
from ..layers.attention import causal_mask, merge_heads, scaled_dot_product_attention, split_heads
from ..layers.cache import KVCache
from ..layers.rope import RotaryEmbedding, normalize_rope_parameters
from .base import ModelOutput, PretrainedModel
from .config import (
    DERIVED,
    Factor,
    LayerCount,
    Positions,
    PretrainedConfig,
    VocabSize,
    Width,
)


class Scales(NamedTuple):
    """What a family multiplies the scores, the embeddings and both residual branches by, and what
    it divides the logits by."""

    attention: float
    embeddings: float = 1.0
    residual: float = 1.0
    logits_divisor: float = 1.0


@dataclass(kw_only=True)
class DecoderConfig(PretrainedConfig):
    """Fields that all text decoders have; see the transformers documentation of each family.

    Attributes:
        gated_mlp: whether the feed-forward part multiplies with a gate.
    """

    gated_mlp: ClassVar[bool] = True

    vocab_size: VocabSize = 32000
    hidden_size: Width = 4096
    intermediate_size: Width = 11008
    num_hidden_layers: LayerCount = 32
    num_attention_heads: Factor = 32
    num_key_value_heads: Factor = DERIVED
    head_dim: Width = DERIVED
    hidden_act: str = "silu"
    max_position_embeddings: Positions = 2048
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: TokenId | None = None
    bos_token_id: TokenId | None = 1
    eos_token_id: TokenId | list[TokenId] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] = DERIVED
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self._check_multiple("hidden_size", "num_attention_heads")
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_dim % 2:
            raise InputError.must_be("head_dim", self.head_dim, "even, to be rotated")
        self._check_multiple("num_attention_heads", "num_key_value_heads")
        self._check_choice("hidden_act", ACTIVATIONS)
        given = self.rope_parameters, self.rope_theta, self.rope_scaling
        self.rope_parameters = normalize_rope_parameters(*given)
        # as checkpoints had them before, for who still asks for them
        self.rope_theta = self.rope_parameters["rope_theta"]
        plain = self.rope_parameters["rope_type"] == "default"
        self.rope_scaling = None if plain else self.rope_parameters

    @property
    def scales(self) -> Scales:
        """See `Scales`."""
        return Scales(self.head_dim**-0.5)

    def norm(self) -> nn.Module:
        """A normalisation of hidden states; most families have this one, and its epsilon."""
        return nn.RMSNorm(self.hidden_size, eps=self.rms_norm_eps)


class DecoderInputs(TypedDict, total=False):
    """What decoders take beside token ids; see `DecoderModel`."""

    attention_mask: mx.array | None
    position_ids: mx.array | None
    past_key_values: Sequence[KVCache] | None
    inputs_embeds: mx.array | None
    output_hidden_states: bool


@dataclass(kw_only=True)
class DecoderOutput(ModelOutput):
    """`ModelOutput` and the last hidden state, (batch, length, hidden_size), after the final
    norm."""

    last_hidden_state: mx.array


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.scale = config.scales.attention
        dim, head_dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.q_proj = nn.Linear(dim, self.num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, self.num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, self.num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * head_dim, dim, bias=bias)

    def __call__(self, x, mask, cache, rotate):
        queries = split_heads(self.q_proj(x), self.num_heads)
        keys = split_heads(self.k_proj(x), self.num_kv_heads)
        values = split_heads(self.v_proj(x), self.num_kv_heads)
        queries, keys = rotate(queries), rotate(keys)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        out = scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=mask)
        return self.o_proj(merge_heads(out))


class MLP(nn.Module):
    """The feed-forward part, with a gate or without."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        dim, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = ACTIVATIONS[config.hidden_act]
        if config.gated_mlp:
            self.gate_proj = nn.Linear(dim, inner, bias=bias)
        self.up_proj = nn.Linear(dim, inner, bias=bias)
        self.down_proj = nn.Linear(inner, dim, bias=bias)

    def __call__(self, x):
        if "gate_proj" in self:
            return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(self.activation(self.up_proj(x)))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.residual_scale = config.scales.residual
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = config.norm()
        self.post_attention_layernorm = config.norm()

    def __call__(self, x, mask, cache, rotate):
        x = x + self._scaled(self.self_attn(self.input_layernorm(x), mask, cache, rotate))
        return x + self._scaled(self.mlp(self.post_attention_layernorm(x)))

    def _scaled(self, branch):
        return branch if self.residual_scale == 1.0 else self.residual_scale * branch


class DecoderModel(PretrainedModel):
    """Token embeddings, layers and the final norm, without a head."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding_scale = config.scales.embeddings
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        rope = config.rope_parameters, config.max_position_embeddings
        self.rope = RotaryEmbedding(config.head_dim, *rope)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = config.norm()

    def __call__(
        self,
        input_ids: mx.array | None = None,
        *,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[KVCache] | None = None,
        inputs_embeds: mx.array | None = None,
        output_hidden_states: bool = False,
    ) -> DecoderOutput:
        """Run the decoder.

        Args:
            input_ids: (batch, length) token ids; or give `inputs_embeds` instead,
                (batch, length, hidden_size), before the embedding multiplier.
            attention_mask: (batch, cached length + length), zero at padding. Not needed where the
                cache was made for a left-padded batch.
            position_ids: (batch, length), or one row for all. By default positions go on from the
                cache, and padding counts (as in transformers), unless the cache knows of it.
            past_key_values: a cache from `make_cache`, extended in place.
            output_hidden_states: also return every layer's output.

        Raises:
            InputError: both or neither of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        batch, length, _ = x.shape
        first = past_key_values[0] if past_key_values else KVCache()
        mask = first.make_mask(length)
        if attention_mask is not None:
            mask = causal_mask(attention_mask, length)
        start = first.offset
        if position_ids is not None:
            start = mx.broadcast_to(position_ids, (batch, length))
        ahead = max(0, first.prompt_length - first.length - length)
        rotate = self.rope.rotation(start, length, ahead)
        states = [x]
        caches: Sequence[KVCache | None] = past_key_values or [None] * len(self.layers)
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x = layer(x, mask, layer_cache, rotate)
            if output_hidden_states:
                states.append(x)
        x = self.norm(x)
        return DecoderOutput(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*states[:-1], x) if output_hidden_states else None,
        )

    def embed(self, input_ids: mx.array) -> mx.array:
        """(batch, length) -> (batch, length, hidden_size), before the embedding multiplier.

        A table in one of the floating-point modes of quantization gives bfloat16 always.
        """
        return self.embed_tokens(input_ids).astype(self.norm.weight.dtype)

    @classmethod
    def sanitize(cls, weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """Out of a checkpoint with or without a head: names without `model.`, the head dropped."""
        heads = ("lm_head.", "score.")
        kept = {k.removeprefix("model."): v for k, v in weights.items() if not k.startswith(heads)}
        return super().sanitize(kept, config)
