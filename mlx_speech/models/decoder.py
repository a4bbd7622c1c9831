"""The one decoder-only transformer. Each family's file says only what differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .activations import silu
from .attention import causal_mask, merge_heads, scaled_dot_product_attention, split_heads
from .base import PretrainedModel
from .cache import KVCache
from .config import PretrainedConfig
from .rope import RotaryEmbedding, normalize_rope_parameters

ACTIVATIONS: dict[str, Callable] = {
    "silu": silu,
    "gelu": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
}


@dataclass(kw_only=True)
class DecoderConfig(PretrainedConfig):
    """Fields that all text decoders have; see the transformers documentation of each family."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is none of {', '.join(ACTIVATIONS)}")
        self.rope_parameters = normalize_rope_parameters(
            self.rope_parameters, self.rope_theta, self.rope_scaling
        )

    # What a family scales: the embeddings, the scores, both residual branches, and the logits.

    @property
    def embedding_scale(self) -> float:
        return 1.0

    @property
    def attention_scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def residual_scale(self) -> float:
        return 1.0

    @property
    def logits_divisor(self) -> float:
        return 1.0


@dataclass
class CausalLMOutput:
    """What a causal language model returns.

    logits: (batch, kept positions, vocab_size).
    loss: mean cross-entropy, when labels were given.
    hidden_states: on request, the embeddings, each layer's output, and the final norm's in place
        of the last layer's, all (batch, length, hidden_size).
    past_key_values: the cache that was passed in, now longer.
    """

    logits: mx.array
    loss: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    past_key_values: Sequence[Any] | None = None


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig, rope: RotaryEmbedding):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.scale = config.attention_scale
        self.rope = rope
        dim, head_dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.q_proj = nn.Linear(dim, self.num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, self.num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, self.num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * head_dim, dim, bias=bias)

    def __call__(self, x, mask, cache):
        queries = split_heads(self.q_proj(x), self.num_heads)
        keys = split_heads(self.k_proj(x), self.num_kv_heads)
        values = split_heads(self.v_proj(x), self.num_kv_heads)
        offset = 0 if cache is None else cache.offset
        queries, keys = self.rope(queries, offset), self.rope(keys, offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        out = scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=mask)
        return self.o_proj(merge_heads(out))


class GatedMLP(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        dim, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = ACTIVATIONS[config.hidden_act]
        self.gate_proj = nn.Linear(dim, inner, bias=bias)
        self.up_proj = nn.Linear(dim, inner, bias=bias)
        self.down_proj = nn.Linear(inner, dim, bias=bias)

    def __call__(self, x):
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, rope: RotaryEmbedding):
        super().__init__()
        self.residual_scale = config.residual_scale
        self.self_attn = Attention(config, rope)
        self.mlp = GatedMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x, mask, cache):
        x = x + self.residual_scale * self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.residual_scale * self.mlp(self.post_attention_layernorm(x))


class DecoderModel(nn.Module):
    """Token embeddings, layers and the final norm, without a head."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.embedding_scale = config.embedding_scale
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        rope = RotaryEmbedding(
            config.head_dim, config.rope_parameters, config.max_position_embeddings
        )
        self.layers = [DecoderLayer(config, rope) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        *,
        inputs_embeds: mx.array | None = None,
        attention_mask: mx.array | None = None,
        cache: Sequence[Any] | None = None,
    ) -> tuple[mx.array, ...]:
        """Returns the hidden states described at `CausalLMOutput`, the final one last."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x = x * self.embedding_scale
        length = x.shape[1]
        if attention_mask is not None:
            mask = causal_mask(attention_mask, length)
        elif cache is not None:
            mask = cache[0].make_mask(length)
        else:
            mask = "causal" if length > 1 else None
        states = [x]
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            states.append(layer(states[-1], mask, layer_cache))
        states[-1] = self.norm(states[-1])
        return tuple(states)


class CausalLM(PretrainedModel):
    """A decoder with a language-modelling head, tied to the embeddings or its own."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.logits_divisor = config.logits_divisor
        self.model = DecoderModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        *,
        inputs_embeds: mx.array | None = None,
        attention_mask: mx.array | None = None,
        past_key_values: Sequence[Any] | None = None,
        labels: mx.array | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> CausalLMOutput:
        """Run the decoder.

        Args:
            input_ids: (batch, length) token ids; or give `inputs_embeds` instead,
                (batch, length, hidden_size), before the embedding multiplier.
            attention_mask: (batch, cached length + length), zero at padding. Not needed where the
                cache was made for a left-padded batch.
            past_key_values: a cache from `make_cache`, extended in place.
            labels: (batch, length), -100 where there is no loss.
            logits_to_keep: compute logits for the last so many positions only; 0 means all.
            output_hidden_states: also return every layer's output.
        """
        states = self.model(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            cache=past_key_values,
        )
        logits = self.logits(states[-1][:, -logits_to_keep:])
        return CausalLMOutput(
            logits=logits,
            loss=None if labels is None else causal_lm_loss(logits, labels),
            hidden_states=states if output_hidden_states else None,
            past_key_values=past_key_values,
        )

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(…, hidden_size) -> (…, vocab_size)."""
        if self.config.tie_word_embeddings:
            logits = self.model.embed_tokens.as_linear(hidden_states)
        else:
            logits = self.lm_head(hidden_states)
        return logits if self.logits_divisor == 1.0 else logits / self.logits_divisor

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self.config.max_position_embeddings

    def make_cache(self, left_padding: Sequence[int] | None = None) -> list[KVCache]:
        """An empty cache, one entry a layer; see `KVCache` for `left_padding`."""
        return [KVCache(left_padding) for _ in self.model.layers]

    def prefill(self, input_ids: mx.array, cache: list[KVCache]):
        """Feed the prompt; returns the next token's logits and the function for later steps."""

        def step(tokens: mx.array) -> mx.array:
            return self(tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1]

        return step(input_ids), step


def causal_lm_loss(
    logits: mx.array, labels: mx.array, attention_mask: mx.array | None = None
) -> mx.array:
    """Mean cross-entropy of each position's logits against the next position's label.

    Args:
        logits: (batch, length, vocab_size).
        labels: (batch, length), -100 where there is no loss.
        attention_mask: (batch, length); labels at its zeros do not count either.
    """
    targets = labels[:, 1:]
    counts = targets != -100
    if attention_mask is not None:
        counts = counts & (attention_mask[:, 1:] != 0)
    losses = nn.losses.cross_entropy(
        logits[:, :-1].astype(mx.float32), mx.where(counts, targets, 0), reduction="none"
    )
    return (losses * counts).sum() / counts.sum()
