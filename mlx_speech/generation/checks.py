"""Whether what a call of `generate` gives fits the model, and fits together."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import mlx.core as mx

from ..errors import ContextLengthError, InputError, UnsupportedOptionError
from ..fields import fitted
from ..layers.cache import KVCache, QuantizedKVCache
from .config import GenerationConfig
from .protocols import GenerativeModel, LayerCache

#: what `generate` takes beside options, the cache's options and the model's inputs
ARGUMENTS = (
    *("drafts", "draft_model", "draft_past_key_values", "logits_processor", "past_key_values"),
    *("prefix_allowed_tokens_fn", "stopping_criteria", "tokenizer"),
)


def is_cache(cache: Any) -> bool:
    """Whether it is a cache for every layer."""
    return isinstance(cache, Sequence) and all(isinstance(layer, LayerCache) for layer in cache)


def check_cache(
    cache: Sequence[LayerCache], prompt_length: int, padding: list[int] | None, options: dict
) -> None:
    """Raises `InputError` where a caller's cache does not fit a prompt."""
    if options:
        raise InputError(f"past_key_values is a cache already, without {', '.join(options)}")
    if padding is not None and any(padding) and not cache[0].padded:
        raise InputError("past_key_values was made without the left_padding of these prompts")
    if any(layer.lengths is not None for layer in cache if isinstance(layer, KVCache)):
        raise InputError("past_key_values holds rows of different lengths, which cannot go on")
    if cache[0].length >= prompt_length:
        lengths = f"{cache[0].length} positions already, and the prompt has only {prompt_length}"
        remedy = "give the whole conversation, or trim the cache"
        raise InputError(f"past_key_values holds {lengths}; {remedy}")


def check_drafting(
    drafting: dict[str, Any], inputs: dict[str, Any], cache: Sequence[LayerCache], rows: int
) -> None:
    """Raises `InputError` where drafts do not go together with the rest of a call.

    Args:
        drafting: `drafts`, or a `draft_model` and its `draft_past_key_values`.
        inputs: of the model, beside ids.
        cache: that of the answers.
    """
    if inputs.get("inputs_embeds") is not None:
        raise InputError("drafts continue ids; leave inputs_embeds out")
    caches = [cache]
    if "draft_model" in drafting:
        if inputs.keys() & {"input_features", "audio_features"}:
            message = "a draft model proposes answers to ids, not to recordings or embeddings"
            raise InputError(message)
        if rows > 1:
            raise InputError("a draft model serves one prompt at a time")
        if own := drafting.get("draft_past_key_values"):
            if not is_cache(own):
                raise InputError.must_be("draft_past_key_values", own, "what make_cache returned")
            caches.append(own)
    else:
        drafts = fitted("drafts", drafting["drafts"], Sequence[Sequence[int]])
        if len(drafts) != rows:
            raise InputError(f"there are {len(drafts)} drafts, but {rows} prompts")
    layers = [layer for cache in caches for layer in cache]
    if any(layer.max_size is not None for layer in layers if isinstance(layer, KVCache)):
        raise InputError.about("drafts need a cache that keeps everything: no {max_kv_size}")
    if any(layer.padded for layer in layers if isinstance(layer, KVCache)):
        raise InputError("drafts need a cache without left_padding")
    if any(isinstance(layer, QuantizedKVCache) and layer.start for layer in layers):
        # a block of several tokens would be quantized from another place on than one by one
        message = "{quantized_kv_start} and drafts do not go together: quantize from the beginning"
        raise InputError.about(message)
    if not all(isinstance(layer, KVCache) for layer in layers):
        raise InputError("drafts are for models that are a decoder, without encoded recordings")


def check_generates(model: object) -> None:
    """Raises `UnsupportedOptionError` for a model without a language model's head."""
    if not hasattr(model, "prefill"):
        needed = "that takes a language model with its head"
        raise UnsupportedOptionError(f"a {type(model).__name__} generates no text; {needed}")


def check_function(name: str, value: Any) -> None:
    """Raises `InputError` where an argument is neither a function nor left out."""
    if value is not None and not callable(value):
        raise InputError.must_be(name, value, "a function")


def check_one_text(config: GenerationConfig) -> None:
    """Raises `InputError` where options ask for more than the one answer that becomes a text."""
    for name in ("return_dict_in_generate", "output_scores", "output_logits"):
        if getattr(config, name):
            raise InputError.about("{option} is for model.generate, not for texts", option=name)
    if config.num_return_sequences > 1:
        message = "a prompt has one text: {num_return_sequences} is for model.generate"
        raise InputError.about(message)


def check_context(
    model: GenerativeModel, prompt_tokens: int, new_tokens: int, room: int | None
) -> None:
    """Raises `ContextLengthError` where an answer is longer than a model has room for."""
    if room is not None and new_tokens > room:
        message = (
            "a prompt of {prompt} tokens and {new} new ones exceed the model's context of "
            "{context}; {max_new_tokens} bounds the answer"
        )
        if "max_kv_size" in model.cache_options:
            message += ", and {max_kv_size} keeps only the latest tokens in view"
        context = model.context_length
        raise ContextLengthError.about(
            message, prompt=prompt_tokens, new=new_tokens, context=context
        )


def padding_mask(input_ids: mx.array, config: GenerationConfig) -> mx.array | None:
    """The attention mask of ids that came without one: None where nothing in them is padding."""
    pad = config.pad_token_id
    if pad is None or pad in config.eos_token_ids:
        return None
    mask = input_ids != pad
    return None if mx.all(mask).item() else mask


def left_padding(attention_mask: Any, shape: tuple[int, int]) -> list[int] | None:
    """How many positions at each row's start are padding, of a prompt of this shape.

    Raises:
        InputError: there is padding elsewhere.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, mx.array):
        raise InputError.must_be("attention_mask", attention_mask, "an array (batch, length)")
    if attention_mask.shape != shape:
        raise InputError(f"attention_mask is {attention_mask.shape}, but the prompt is {shape}")
    mask = (attention_mask != 0).astype(mx.int32)
    if mx.any(mask[:, 1:] < mask[:, :-1]).item() or not mx.all(mask[:, -1]).item():
        remedy = "where pad tokens are meant as text, give attention_mask=mx.ones_like(input_ids)"
        raise InputError(f"generate needs its prompts padded on the left; {remedy}")
    return (shape[1] - mask.sum(axis=1)).tolist()


def refuse_all(options: Mapping[str, Any], instead: str) -> None:
    """Refuse options of generation, for a model that does not write token by token.

    Args:
        options: one that is None is not asked for.
        instead: what the model does.

    Raises:
        InputError: there is no such option.
        UnsupportedOptionError: one is not None.
    """
    known = {*ARGUMENTS, "draft", "streamer", *(f.name for f in fields(GenerationConfig))}
    for name, value in options.items():
        if value is None:
            continue
        if name not in known:
            raise InputError(f"generate has no argument {name}")
        message = "{option} is for models that write token by token, as Granite Speech with a "
        message += "prompt and Speech2Text do; {instead}"
        raise UnsupportedOptionError.about(message, option=name, instead=instead)
