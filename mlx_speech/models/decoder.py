"""The one decoder-only transformer. Each family's file says only what differs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from ..errors import InputError, UnsupportedOptionError
from ..layers.activations import ACTIVATIONS
from ..layers.attention import (
    AttentionMask,
    decoder_mask,
    merge_heads,
    packed_mask,
    scaled_dot_product_attention,
    split_heads,
)
from ..layers.cache import KVCache, LeftPadding, make_cache
from ..layers.model_output import ModelOutput, asked, can_return_tuple
from ..layers.rope import RotaryEmbedding
from ..layers.sharding import ShardingGroup
from ..layers.token_ids import check_array, check_cache_position, check_token_ids
from .base import PretrainedModel
from .decoder_config import DecoderConfig
from .initialization import init_weights
from .leader import LedModel


class DecoderOptions(TypedDict, total=False):
    """What every call takes by keyword; see `DecoderModel`."""

    cache_position: mx.array | None
    output_attentions: bool | None
    output_hidden_states: bool | None


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """What a decoder without a head returns.

    last_hidden_state: (batch, length, hidden_size), after the final norm.
    past_key_values: the cache, an entry a layer; see `use_cache`.
    hidden_states: on request, the embeddings, each layer's output, and the final norm's in place
        of the last layer's, all (batch, length, hidden_size).
    attentions: on request, each layer's weights, (batch, heads, length, cached length + length).
    """

    last_hidden_state: mx.array | None = None
    past_key_values: Sequence[KVCache] | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


class Attention(nn.Module):
    """Attention of all heads, or of those that this rank has.

    sharding_group: the ranks that have the others; None if there are none.
    """

    sharding_group: ShardingGroup | None = None

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.scale = config.scales.attention
        self.dropout = config.attention_dropout or 0.0
        dim, head_dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.q_proj = nn.Linear(dim, self.num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, self.num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, self.num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * head_dim, dim, bias=bias)

    def __call__(self, x, mask, cache, rotate, weights):
        queries = split_heads(self.q_proj(x), self.num_heads)
        keys = split_heads(self.k_proj(x), self.num_kv_heads)
        values = split_heads(self.v_proj(x), self.num_kv_heads)
        queries, keys = rotate(queries), rotate(keys)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        out = scaled_dot_product_attention(
            queries,
            keys,
            values,
            scale=self.scale,
            mask=mask,
            dropout=self.dropout if self.training else 0.0,
            weights=weights,
        )
        return _summed(self.o_proj(merge_heads(out)), self.sharding_group)


class MLP(nn.Module):
    """The feed-forward part, with a gate or without; all of its inner units, or those that this
    rank has.

    sharding_group: as in `Attention`.
    """

    sharding_group: ShardingGroup | None = None

    def __init__(self, config: DecoderConfig):
        super().__init__()
        dim, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.hidden_act = config.hidden_act  # by its name: a compiled function cannot be copied
        if config.gated_mlp:
            self.gate_proj = nn.Linear(dim, inner, bias=bias)
        self.up_proj = nn.Linear(dim, inner, bias=bias)
        self.down_proj = nn.Linear(inner, dim, bias=bias)

    def __call__(self, x):
        activate = ACTIVATIONS[self.hidden_act]
        if "gate_proj" in self:
            inner = activate(self.gate_proj(x)) * self.up_proj(x)
        else:
            inner = activate(self.up_proj(x))
        return _summed(self.down_proj(inner), self.sharding_group)


def _summed(x: mx.array, group: ShardingGroup | None) -> mx.array:
    return x if group is None else group.all_sum(x)


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.residual_scale = config.scales.residual
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = config.norm()
        self.post_attention_layernorm = config.norm()

    def __call__(self, x, mask, cache, rotate, weights):
        x = x + self._scaled(self.self_attn(self.input_layernorm(x), mask, cache, rotate, weights))
        return x + self._scaled(self.mlp(self.post_attention_layernorm(x)))

    def _scaled(self, branch):
        return branch if self.residual_scale == 1.0 else self.residual_scale * branch


class DecoderModel(PretrainedModel):
    """Token embeddings, layers and the final norm, without a head.

    Attributes:
        sharding_group: the ranks that share the layers; None if this process has all of them.
        leader: has the other ranks run their shares with this one; None: each does so by itself.
    """

    sharding_group: ShardingGroup | None = None
    leader: LedModel | None = None

    base_model_prefix = ""
    tied_head = None
    tied_embeddings = "embed_tokens."

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embedding_scale = config.scales.embeddings
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        rope = config.rope_parameters, config.max_position_embeddings
        self.rope = RotaryEmbedding(config.head_dim, *rope)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = config.norm()
        init_weights(self)

    @property
    def padding_idx(self) -> int | None:
        """Id of the padding token, whose embedding is zero in a new model."""
        return self.config.pad_token_id

    @can_return_tuple
    def __call__(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[KVCache] | None = None,
        inputs_embeds: mx.array | None = None,
        use_cache: bool | None = None,
        *,
        cache_position: mx.array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Run the decoder. Arrays may be those of NumPy or torch, too.

        Args:
            input_ids: (batch, length) token ids; or give `inputs_embeds` instead,
                (batch, length, hidden_size), before the embedding multiplier.
            attention_mask: (batch, cached length + length), zero at padding. Not needed where the
                cache was made for a left-padded batch. Or (batch or 1, heads or 1, length, cached
                length + length), boolean, true where attention is allowed, or added to the scores.
            position_ids: (batch, length), or one row for all. By default positions go on from the
                cache, and padding counts (as in transformers), unless the cache knows of it.
                Without cache and mask, texts begin where they do not go on: they are packed, and
                none attends to another.
            past_key_values: a cache from `make_cache` or an earlier call, extended in place.
            use_cache: whether a new cache is made and returned where none is given; by default
                the configuration says.
            cache_position: the positions that follow the cache, (length,), which is known anyway.
            output_attentions, output_hidden_states: also return these of every layer; by default
                the configuration says. Fused attention has no weights, so asking for them is
                slower.
            return_dict: whether the result is an output or a tuple; by default the configuration
                says.

        Raises:
            InputError: both or neither of `input_ids` and `inputs_embeds` are given, or an
                argument has another shape or type, or the model does not know an id.
            UnsupportedOptionError: attention weights of layers that are shared out.
        """
        x = self._input_embeds(input_ids, inputs_embeds)
        batch, length, _ = x.shape
        cache = past_key_values
        if cache is not None:
            self.check_cache(cache, batch)
            cache[0].prompt_lengths = None  # a call is a prompt in itself
        elif asked(self.config, "use_cache", use_cache):
            cache = self.make_cache()
        cached = cache[0].length if cache else 0
        if cache_position is not None:
            check_cache_position(cache_position, cached, length)
        mask: mx.array | AttentionMask | None = None
        if position_ids is not None:
            shapes = (batch, length), (1, length), (length,)
            position_ids = check_array(position_ids, "position_ids", mx.integer, *shapes)
            position_ids = mx.broadcast_to(position_ids, (batch, length))
            mask = packed_mask(position_ids) if cache is None else None
        if attention_mask is not None:
            if cache and cached + length > (cache[0].max_size or cached + length):
                raise InputError("a cache of max_kv_size is past it and takes no attention_mask")
            shape = batch, self.config.num_attention_heads, length, cached + length
            mask = decoder_mask(attention_mask, shape, x.dtype)
        weights: list[mx.array] | None = None
        states: list[mx.array] | None = None
        if asked(self.config, "output_attentions", output_attentions):
            if self.sharding_group is not None:
                raise UnsupportedOptionError(
                    "output_attentions is for a model in one process: here each has some heads only"
                )
            weights = []
        if asked(self.config, "output_hidden_states", output_hidden_states):
            states = []
        x = self.run_layers(x, cache, mask, position_ids, states, weights)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache,
            hidden_states=None if states is None else tuple(states),
            attentions=None if weights is None else tuple(weights),
        )

    def run_layers(
        self,
        x: mx.array,
        cache: Sequence[KVCache] | None = None,
        mask: mx.array | AttentionMask | None = None,
        position_ids: mx.array | None = None,
        states: list[mx.array] | None = None,
        weights: list[mx.array] | None = None,
    ) -> mx.array:
        """What generation calls for each token: nothing is checked, so nothing is waited for.

        Args:
            x: (batch, length, hidden_size), before the embedding multiplier.
            mask: see `scaled_dot_product_attention`; by default the cache's.
            states, weights: if given, hidden states and attention weights are appended to them.

        Returns:
            (batch, length, hidden_size), after the final norm.
        """
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        run = self.run_stack if self.leader is None else self.leader.run_stack
        x = self.norm(run(x, cache, mask, position_ids, states, weights))
        if states is not None:
            states.append(x)
        return x

    def run_stack(
        self,
        x: mx.array,
        cache: Sequence[KVCache] | None = None,
        mask: mx.array | AttentionMask | None = None,
        position_ids: mx.array | None = None,
        states: list[mx.array] | None = None,
        weights: list[mx.array] | None = None,
    ) -> mx.array:
        """The layers alone: as `run_layers`, from what the first one gets to what the last one
        gives."""
        length = x.shape[1]
        first = cache[0] if cache else KVCache()
        mask = first.make_mask(length) if mask is None else mask
        if self.sharding_group is not None:
            mask = self.sharding_group.own_heads(mask, self.config.num_attention_heads)
        start = first.offset if position_ids is None else position_ids
        rotate = self.rope.rotation(start, length, first.prompt_lengths)
        caches: Sequence[KVCache | None] = cache or [None] * len(self.layers)
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            if states is not None:
                states.append(x)
            x = layer(x, mask, layer_cache, rotate, weights)
        return x

    def embed(self, input_ids: mx.array) -> mx.array:
        """(batch, length) -> (batch, length, hidden_size), before the embedding multiplier.

        A table in one of the floating-point modes of quantization gives bfloat16 always.
        """
        return self.embed_tokens(input_ids).astype(self.norm.weight.dtype)

    def get_decoder(self) -> "DecoderModel":
        """See `PretrainedModel.get_decoder`."""
        return self

    def share_layers(self, group: ShardingGroup) -> None:
        """Keep what this rank has of the layers; nothing is computed before it is used.

        Raises:
            InputError: that was done already.
        """
        if self.sharding_group is not None:
            raise InputError("the layers of this model are shared out already")
        for module in self.modules():
            if isinstance(module, Attention):
                module.num_heads //= group.size
                module.num_kv_heads //= group.size
            if isinstance(module, Attention | MLP):
                module.sharding_group = group
        self.update(tree_map_with_path(group.part, self.parameters()))
        self.sharding_group = group

    def keep_layers(self) -> None:
        """Be without embeddings and final norm: only `run_stack` works on."""
        del self.embed_tokens, self.norm

    def make_cache(self, left_padding: LeftPadding = None, **options: Any) -> list[KVCache]:
        """An empty cache, one entry a layer; see `mlx_speech.layers.cache.make_cache`."""
        cache = make_cache(self.config.num_hidden_layers, left_padding, **options)
        return cache if self.leader is None else self.leader.recorded(cache, left_padding, options)

    def check_cache(self, cache: Any, batch: int) -> None:
        """Raises `InputError` where it is none of this model and of so many rows."""
        layers, heads = self.config.num_hidden_layers, self.config.num_key_value_heads
        if self.sharding_group is not None:
            heads //= self.sharding_group.size
        is_list = isinstance(cache, Sequence) and all(isinstance(c, KVCache) for c in cache)
        if not is_list or len(cache) != layers:
            found = f"{type(cache).__name__} of {len(cache)}" if is_list else type(cache).__name__
            made = f"a cache of {layers} layers, which model.make_cache() gives, or a call"
            raise InputError(f"past_key_values is a {found}, but must be {made}")
        if cache[0].state and cache[0].state[0].shape[:2] != (batch, heads):
            found = "{} rows and {} heads".format(*cache[0].state[0].shape[:2])
            raise InputError(f"past_key_values has {found}, but {batch} and {heads} are needed")

    def _input_embeds(self, input_ids: Any, inputs_embeds: Any) -> mx.array:
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            return self.embed(check_token_ids(input_ids, self.config.vocab_size))
        shape = "batch", "length", self.config.hidden_size
        embeds = check_array(inputs_embeds, "inputs_embeds", mx.floating, shape)
        return embeds.astype(self.norm.weight.dtype)
