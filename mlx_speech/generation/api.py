"""`generate` and `stream_tokens`: a prompt in, token ids out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import ContextLengthError, InputError
from .beam import Hypothesis, beam_search
from .config import GenerationConfig
from .search import Step, TokenStep, search


def generate(model, input_ids: mx.array | None = None, **kwargs: Any) -> mx.array:
    """Continue prompts, or answer recordings, with the strategy that the options ask for.

    Args:
        model: has `take_prompt`, `make_cache` and `prefill`.
        input_ids: (batch, length), padded on the left where lengths differ; not for an
            encoder-decoder, whose answers start from a token of its own.
        kwargs: `attention_mask`, (batch, length), zero at padding; `generation_config`, by default
            the checkpoint's; single options that differ from it (see `GenerationConfig`); and the
            model's further inputs, such as `input_features`.

    Returns:
        (batch, length + new tokens): the prompt and its continuation, padded at the end.

    Raises:
        ContextLengthError: prompt and `max_new_tokens` exceed the model's context.
        InputError: an argument is unknown or contradicts another.
    """
    run = start(model, input_ids, kwargs)
    rows = _run(run)
    longest = max(len(row.tokens) for row in rows)
    fill = run.config.fill_token_id
    filled = [row.tokens + [fill] * (longest - len(row.tokens)) for row in rows]
    return mx.concatenate([run.prompt, mx.array(filled, run.prompt.dtype)], axis=1)


def generate_rows(
    model, input_ids: mx.array | None = None, **kwargs: Any
) -> tuple[GenerationConfig, list[Hypothesis]]:
    """As `generate`, but each row's new tokens up to and including the one that ends it, with
    their log-probabilities, and the options that applied."""
    run = start(model, input_ids, kwargs)
    return run.config, _run(run)


def stream_tokens(model, input_ids: mx.array | None = None, **kwargs: Any) -> Iterator[TokenStep]:
    """As `generate`, but yields each step's tokens as they come. Beam search cannot stream.

    Raises:
        InputError: `num_beams` above 1, or as in `generate`.
    """
    if resolve_config(model, dict(kwargs)).num_beams > 1:
        raise InputError("beam search knows its text only at the end: num_beams cannot stream")
    run = start(model, input_ids, kwargs)
    return search(run.logits, run.step, run.config, run.history)


def _run(run: Run) -> list[Hypothesis]:
    if run.config.num_beams > 1:
        return beam_search(run.logits, run.step, run.cache, run.config, run.history)
    rows = [Hypothesis(0.0, [], []) for _ in range(len(run.prompt))]
    for token_step in search(run.logits, run.step, run.config, run.history):
        for row, token, logprob, ended in zip(
            rows, token_step.tokens, token_step.logprobs, token_step.ended, strict=True
        ):
            if not ended:
                row.tokens.append(token)
                row.logprobs.append(logprob)
                row.score += logprob
    return rows


def resolve_config(model, kwargs: dict[str, Any]) -> GenerationConfig:
    """The options of a call; takes them out of `kwargs` and leaves the model's inputs."""
    config = kwargs.pop("generation_config", None) or model.generation_config
    names = {f.name for f in dataclasses.fields(GenerationConfig)}
    options = {name: kwargs.pop(name) for name in names & kwargs.keys()}
    return (config or GenerationConfig()).updated(**options)


@dataclass(frozen=True)
class Run:
    """A prompt that was fed, and all that a strategy needs to go on.

    prompt: (rows, length) ids.
    history: the same for the penalties, see `without_padding`.
    logits: (rows, vocab) of the first new token.
    """

    config: GenerationConfig
    prompt: mx.array
    history: mx.array
    logits: mx.array
    step: Step
    cache: Sequence[Any]


def start(model, input_ids: mx.array | None, kwargs: dict[str, Any]) -> Run:
    """Resolve the options and feed the prompt; arguments and errors as in `generate`."""
    inputs = dict(kwargs)
    config = resolve_config(model, inputs)
    if input_ids is not None:
        inputs["input_ids"] = input_ids
    prompt, attention_mask = model.take_prompt(inputs, config)
    accepted = inspect.signature(model.prefill).parameters.values()
    unknown = inputs.keys() - {p.name for p in accepted if p.kind is p.KEYWORD_ONLY}
    if unknown:
        raise InputError(f"generate has no argument {', '.join(sorted(unknown))}")
    length = prompt.shape[1]
    config = config.limited(length)
    if config.max_new_tokens + length > model.context_length:
        raise ContextLengthError(
            f"a prompt of {length} tokens and {config.max_new_tokens} new ones exceed the model's "
            f"context of {model.context_length}"
        )
    padding = left_padding(attention_mask, prompt)
    cache = model.make_cache() if padding is None else model.make_cache(padding)
    logits, step = model.prefill(prompt, cache, **inputs)
    return Run(config, prompt, without_padding(prompt, attention_mask), logits, step, cache)


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
