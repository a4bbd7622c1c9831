"""`generate` and `stream_tokens`: a prompt in, token ids out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from ..errors import ContextLengthError, InputError
from .beam import Hypothesis, beam_search
from .config import GenerationConfig
from .search import TokenStep, search


def generate(
    model,
    input_ids: mx.array,
    *,
    attention_mask: mx.array | None = None,
    generation_config: GenerationConfig | None = None,
    **kwargs: Any,
) -> mx.array:
    """Continue prompts, with the strategy that the options ask for.

    Args:
        model: has `make_cache` and `prefill`.
        input_ids: (batch, length), padded on the left where lengths differ.
        attention_mask: (batch, length), zero at padding.
        generation_config: the options; by default the checkpoint's.
        kwargs: single options that differ (see `GenerationConfig`), and the model's further inputs,
            such as `input_features`.

    Returns:
        (batch, length + new tokens): the prompt and its continuation, padded at the end.

    Raises:
        ContextLengthError: prompt and `max_new_tokens` exceed the model's context.
        InputError: an argument is unknown or contradicts another.
    """
    config, rows = generate_rows(
        model,
        input_ids,
        attention_mask=attention_mask,
        generation_config=generation_config,
        **kwargs,
    )
    longest = max(len(row.tokens) for row in rows)
    filled = [r.tokens + [config.fill_token_id] * (longest - len(r.tokens)) for r in rows]
    return mx.concatenate([input_ids, mx.array(filled, input_ids.dtype)], axis=1)


def generate_rows(
    model, input_ids: mx.array, **kwargs: Any
) -> tuple[GenerationConfig, list[Hypothesis]]:
    """As `generate`, but each row's new tokens up to and including the one that ends it, with
    their log-probabilities, and the options that applied."""
    config = resolve_config(model, kwargs)
    if config.num_beams > 1:
        logits, step, cache = start(model, input_ids, config, kwargs)
        prompt = without_padding(input_ids, kwargs.get("attention_mask"))
        return config, beam_search(logits, step, cache, config, prompt)
    rows = [Hypothesis(0.0, [], []) for _ in range(input_ids.shape[0])]
    for token_step in _search(model, input_ids, config, kwargs):
        for row, token, logprob, ended in zip(
            rows, token_step.tokens, token_step.logprobs, token_step.ended, strict=True
        ):
            if not ended:
                row.tokens.append(token)
                row.logprobs.append(logprob)
                row.score += logprob
    return config, rows


def stream_tokens(model, input_ids: mx.array, **kwargs: Any) -> Iterator[TokenStep]:
    """As `generate`, but yields each step's tokens as they come. Beam search cannot stream.

    Raises:
        InputError: `num_beams` above 1, or as in `generate`.
    """
    config = resolve_config(model, kwargs)
    if config.num_beams > 1:
        raise InputError("beam search knows its text only at the end: num_beams cannot stream")
    return _search(model, input_ids, config, kwargs)


def _search(model, input_ids, config, inputs) -> Iterator[TokenStep]:
    logits, step, _ = start(model, input_ids, config, inputs)
    return search(logits, step, config, without_padding(input_ids, inputs.get("attention_mask")))


def resolve_config(model, kwargs: dict[str, Any]) -> GenerationConfig:
    """The options of a call; takes them out of `kwargs` and leaves the model's inputs."""
    config = kwargs.pop("generation_config", None) or model.generation_config
    names = {f.name for f in dataclasses.fields(GenerationConfig)}
    options = {name: kwargs.pop(name) for name in names & kwargs.keys()}
    accepted = inspect.signature(model.__call__).parameters
    unknown = kwargs.keys() - accepted.keys()
    if unknown:
        raise InputError(f"generate has no argument {', '.join(sorted(unknown))}")
    return (config or GenerationConfig()).updated(**options)


def start(model, input_ids: mx.array, config: GenerationConfig, inputs: dict[str, Any]):
    """Feed the prompt: (logits of the first new token, step function, cache)."""
    inputs = dict(inputs)
    length = input_ids.shape[1]
    if config.max_new_tokens + length > model.context_length:
        raise ContextLengthError(
            f"a prompt of {length} tokens and {config.max_new_tokens} new ones exceed the model's "
            f"context of {model.context_length}"
        )
    padding = left_padding(inputs.pop("attention_mask", None), input_ids)
    cache = model.make_cache(padding)
    logits, step = model.prefill(input_ids, cache, **inputs)
    return logits, step, cache


def without_padding(input_ids: mx.array, attention_mask: mx.array | None) -> mx.array:
    """Prompts whose padding repeats their last token, so that penalties see no other ids."""
    if attention_mask is None:
        return input_ids
    return mx.where(attention_mask != 0, input_ids, input_ids[:, -1:])


def left_padding(attention_mask: mx.array | None, input_ids: mx.array) -> list[int] | None:
    """How many positions at each row's start are padding.

    Raises:
        InputError: there is padding elsewhere.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask is {attention_mask.shape}, but input_ids are {input_ids.shape}"
        )
    mask = attention_mask.astype(mx.int32)
    if mx.any(mask[:, 1:] < mask[:, :-1]).item() or not mx.all(mask[:, -1]).item():
        raise InputError("generate needs its prompts padded on the left")
    return (input_ids.shape[1] - mask.sum(axis=1)).tolist()
