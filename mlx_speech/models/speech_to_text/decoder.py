"""The decoder of Speech2Text: attention to what was said so far and to the recording."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ...layers.attention import causal_mask
from ...layers.cache import CrossAttentionCache, KVCache
from .layers import Attention, Layer, SinusoidalPositions, Speech2TextConfig


class DecoderLayer(Layer):
    def __init__(self, config: Speech2TextConfig):
        super().__init__(config, config.decoder_attention_heads, config.decoder_ffn_dim)
        self.encoder_attn = Attention(config.d_model, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def __call__(self, x, mask, cache, cross_kv, cross_mask, weights, cross_weights):
        normed = self.self_attn_layer_norm(x)
        keys, values = self.self_attn.keys_values(normed)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        x = x + self.self_attn(normed, keys, values, mask, weights)
        normed = self.encoder_attn_layer_norm(x)
        keys, values = cross_kv
        x = x + self.encoder_attn(normed, keys, values, cross_mask, cross_weights)
        return self.feed_forward(x)


class Speech2TextDecoder(nn.Module):
    def __init__(self, config: Speech2TextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = SinusoidalPositions(config.d_model, config.pad_token_id)
        self.layers = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        self.layer_norm = nn.LayerNorm(config.d_model)

    def __call__(
        self,
        input_ids: mx.array | None,
        inputs_embeds: mx.array | None,
        attention_mask: mx.array | None,
        cross_kv: CrossAttentionCache,
        caches: Sequence[KVCache | None],
        weights: list[mx.array] | None,
        cross_weights: list[mx.array] | None,
    ) -> tuple[mx.array, ...]:
        """The first layer's input, each layer's output, and the final norm's in place of the last
        layer's; see `Speech2TextModel` for the arguments."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of decoder_input_ids and decoder_inputs_embeds")
        if inputs_embeds is None:
            real = input_ids != self.config.pad_token_id
            x = self.embed_tokens(input_ids).astype(self.layer_norm.weight.dtype)
            x = x * self.config.embedding_scale
        else:
            real = mx.ones(inputs_embeds.shape[:2])
            x = inputs_embeds.astype(self.layer_norm.weight.dtype)
        rows, length, _ = x.shape
        if rows != cross_kv.num_rows:
            raise InputError(
                f"the decoder's input has {rows} rows, but the recordings need {cross_kv.num_rows}"
            )
        cache = caches[0]
        offset = 0 if cache is None else cache.length
        x = x + self.positions(real, offset).astype(x.dtype)
        if attention_mask is not None:
            mask = causal_mask(attention_mask, length)
        elif cache is not None:
            mask = cache.make_mask(length)
        else:
            mask = "causal" if length > 1 else None
        states = [x]
        for layer, layer_cache, encoded in zip(self.layers, caches, cross_kv.layers, strict=True):
            states.append(
                layer(states[-1], mask, layer_cache, encoded, cross_kv.mask, weights, cross_weights)
            )
        states[-1] = self.layer_norm(states[-1])
        return tuple(states)
