"""The decoder of Speech2Text: attention to what was said so far and to the recording."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...errors import InputError
from ...layers.attention import decoder_mask
from ...layers.cache import CrossAttentionCache, KVCache
from ...layers.model_output import asked, can_return_tuple
from ...layers.token_ids import check_array, check_cache_position, check_token_ids
from .layers import Attention, Layer, LayerStack, Speech2TextConfig, head_masks
from .outputs import BaseModelOutputWithPastAndCrossAttentions, Layers

Cache = Sequence[Any]  #: see `Speech2TextDecoder.make_cache`


class DecoderLayer(Layer):
    def __init__(self, config: Speech2TextConfig):
        super().__init__(config, config.decoder_attention_heads, config.decoder_ffn_dim)
        self.encoder_attn = Attention(config, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def __call__(self, x, mask, cache, cross_kv, cross_mask, weights, heads, cross_heads):
        normed = self.self_attn_layer_norm(x)
        keys, values = self.self_attn.keys_values(normed)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        x = x + self.dropout(self.self_attn(normed, keys, values, mask, weights, heads))
        normed = self.encoder_attn_layer_norm(x)
        keys, values = cross_kv
        attended = self.encoder_attn(normed, keys, values, cross_mask, weights, cross_heads)
        x = x + self.dropout(attended)
        return self.feed_forward(x)


class Speech2TextDecoder(LayerStack):
    def __init__(self, config: Speech2TextConfig):
        layers = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        super().__init__(config, layers, config.decoder_layerdrop)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)

    @can_return_tuple
    def __call__(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        encoder_hidden_states: mx.array | None = None,
        encoder_attention_mask: mx.array | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: mx.array | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: mx.array | None = None,
        *,
        head_mask: mx.array | None = None,
        cross_attn_head_mask: mx.array | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the decoder; what is not described here is as in `Speech2TextModel`, which gives its
        arguments that begin with `decoder_`.

        Args:
            encoder_hidden_states: (recordings, subsampled frames, d_model).
            encoder_attention_mask: (recordings, subsampled frames), zero at padding.
            head_mask: the `decoder_head_mask`.
        """
        config, dtype = self.config, self.layer_norm.weight.dtype
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of decoder_input_ids and decoder_inputs_embeds")
        if inputs_embeds is None:
            ids = check_token_ids(input_ids, config.vocab_size, "decoder_input_ids")
            x, real = self.embed(ids)
        else:
            shape = "recordings", "length", config.d_model
            embeds = check_array(inputs_embeds, "decoder_inputs_embeds", mx.floating, shape)
            x, real = embeds.astype(dtype), mx.ones(embeds.shape[:2])
        rows, length, _ = x.shape
        kept = asked(config, "use_cache", use_cache) or past_key_values is not None
        none = [*[None] * len(self.layers), CrossAttentionCache()]
        cache: Cache = past_key_values or (self.make_cache() if kept else none)
        is_list = isinstance(past_key_values, Sequence | None) and len(cache) == len(none)
        if not is_list or not isinstance(cache[-1], CrossAttentionCache):
            raise InputError("past_key_values must be what make_cache or an earlier call returned")
        self.attend_to(cache, encoder_hidden_states, encoder_attention_mask)
        if rows != cache[-1].num_rows:
            needed = f"{rows} rows, but the recordings need {cache[-1].num_rows}"
            raise InputError(f"the decoder's input has {needed}")
        cached, mask = cache[0].length if kept else 0, None
        if cache_position is not None:
            check_cache_position(cache_position, cached, length)
        if attention_mask is not None:
            of_scores = rows, config.decoder_attention_heads, length, cached + length
            mask = decoder_mask(attention_mask, of_scores, dtype, "decoder_attention_mask")
        weights: list[mx.array] | None = None
        if asked(config, "output_attentions", output_attentions):
            weights = []
        size = len(self.layers), config.decoder_attention_heads
        own = head_masks(head_mask, "decoder_head_mask", *size)
        cross = head_masks(cross_attn_head_mask, "cross_attn_head_mask", *size)
        states = self.decode(x, real, cache, mask, weights, [*zip(own, cross, strict=True)])
        shown = asked(config, "output_hidden_states", output_hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=states[-1],
            past_key_values=cache if kept else None,
            hidden_states=states if shown else None,
            attentions=None if weights is None else tuple(weights[::2]),
            cross_attentions=None if weights is None else tuple(weights[1::2]),
        )

    def make_cache(self) -> list[KVCache | CrossAttentionCache]:
        """An empty cache: one entry for each layer's own positions, and one for the recordings."""
        return [*(KVCache() for _ in self.layers), CrossAttentionCache()]

    def attend_to(
        self, cache: Cache, frames: mx.array | None, attention_mask: mx.array | None = None
    ) -> None:
        """Put every layer's keys and values of the recordings into a cache that has none yet; the
        arguments are those of the encoder in the call.

        Raises:
            InputError: there are no recordings, or other ones in the cache.
        """
        cross_kv = cache[-1]
        if frames is None:
            if not cross_kv.layers:
                raise InputError("give input_features or encoder_outputs")
            return
        shape = "recordings", "frames", self.config.d_model
        frames = check_array(frames, "encoder_outputs", mx.floating, shape)
        if cross_kv.layers:
            keys, _ = cross_kv.layers[0]
            if keys.shape[::2] != frames.shape[:2]:
                raise InputError(
                    f"past_key_values hold recordings of {keys.shape[::2]} frames, but these are "
                    f"{frames.shape[:2]}; other recordings need a new cache"
                )
            return
        keys_values = [layer.encoder_attn.keys_values(frames) for layer in self.layers]
        mask = attention_mask
        cross_kv.fill(keys_values, None if mask is None else mask.astype(mx.bool_)[:, None, None])

    def embed(self, input_ids: mx.array) -> tuple[mx.array, mx.array]:
        """(rows, length) -> embeddings (rows, length, d_model), and which are no padding."""
        embeds = self.embed_tokens(input_ids).astype(self.layer_norm.weight.dtype)
        real = mx.not_equal(input_ids, self.config.pad_token_id)
        return embeds * self.config.embedding_scale, real

    def decode(
        self,
        x: mx.array,
        real: mx.array,
        cache: Cache,
        mask: mx.array | None = None,
        weights: list[mx.array] | None = None,
        heads: Sequence[tuple[mx.array | None, mx.array | None]] | None = None,
    ) -> Layers:
        """What generation calls for each token: nothing is checked, so nothing is waited for.

        Args:
            x: (rows, length, d_model), without positions.
            real: (rows, length), zero at padding.
            cache: with the recordings in it, see `attend_to`.
            mask: for attention; by default the cache's.
            weights: if given, gets those of each layer to its own positions and then to the
                recording.
            heads: `head_mask` of each layer's attention to either, see `Attention`.

        Returns:
            See `LayerStack.run`.
        """
        *caches, cross_kv = cache
        first = caches[0] or KVCache()
        x = x + self.positions(real, first.length).astype(x.dtype)
        mask = first.make_mask(x.shape[1]) if mask is None else mask
        given = {"mask": mask, "cross_mask": cross_kv.mask, "weights": weights}
        heads = heads or [(None, None)] * len(caches)
        each = zip(self.layers, caches, cross_kv.layers, heads, strict=True)
        return self.run(
            x,
            (
                partial(layer, cache=own, cross_kv=kv, heads=of_own, cross_heads=cross, **given)
                for layer, own, kv, (of_own, cross) in each
            ),
        )
