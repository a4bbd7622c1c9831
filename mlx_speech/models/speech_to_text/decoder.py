"""The decoder of Speech2Text: attention to what was said so far and to the recording."""

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

    def __call__(self, x, mask, cache, cross_kv, cross_mask, weights):
        normed = self.self_attn_layer_norm(x)
        keys, values = self.self_attn.keys_values(normed)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        x = x + self.self_attn(normed, keys, values, mask, weights)
        normed = self.encoder_attn_layer_norm(x)
        keys, values = cross_kv
        x = x + self.encoder_attn(normed, keys, values, cross_mask, weights)
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
    ) -> tuple[mx.array, ...]:
        """The first layer's input, each layer's output, and the final norm's in place of the last
        layer's; see `Speech2TextModel` for the arguments. `weights`, if given, gets those of each
        layer to its own positions and then to the recording."""
        dtype = self.layer_norm.weight.dtype
        if input_ids is not None and inputs_embeds is None:
            real = mx.not_equal(input_ids, self.config.pad_token_id)
            x = self.embed_tokens(input_ids).astype(dtype) * self.config.embedding_scale
        elif input_ids is None and inputs_embeds is not None:
            real = mx.ones(inputs_embeds.shape[:2])
            x = inputs_embeds.astype(dtype)
        else:
            raise InputError("give exactly one of decoder_input_ids and decoder_inputs_embeds")
        rows, length, _ = x.shape
        if rows != cross_kv.num_rows:
            raise InputError(
                f"the decoder's input has {rows} rows, but the recordings need {cross_kv.num_rows}"
            )
        first = caches[0] or KVCache()
        x = x + self.positions(real, first.length).astype(x.dtype)
        mask = first.make_mask(length)
        if attention_mask is not None:
            mask = causal_mask(attention_mask, length)
        states = [x]
        for layer, cache, encoded in zip(self.layers, caches, cross_kv.layers, strict=True):
            states.append(layer(states[-1], mask, cache, encoded, cross_kv.mask, weights))
        states[-1] = self.layer_norm(states[-1])
        return tuple(states)
