"""`generate` and `stream_tokens`: a prompt in, token ids out."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import ContextLengthError, InputError, UnsupportedOptionError
from .beam import Hypothesis, beam_search
from .config import GenerationConfig
from .sampling import LogitsProcessor
from .search import Step, TokenStep, search
from .speculative import speculative_search
from .stopping import Ending


def generate(model, input_ids: mx.array | None = None, **kwargs: Any) -> mx.array:
    """Continue prompts, or answer recordings, with the strategy that the options ask for.

    Args:
        model: has `prepare_prompt`, `make_cache` and `prefill`.
        input_ids: (batch, length), padded on the left where lengths differ; not for an
            encoder-decoder, whose answers start from a token of its own.
        attention_mask: (batch, length), zero at padding.
        generation_config: the options; by default the checkpoint's.
        logits_processor: functions of (tokens so far (rows, length), scores (rows, vocab)) that
            give other scores, applied in order.
        tokenizer: what decodes, for `stop_strings`.
        draft_model: a smaller model with the same vocabulary, for speculative decoding.
        past_key_values: a cache that holds the beginning of the prompt already (`make_cache`).
        kwargs: single options that differ from the configuration's (see `GenerationConfig`), those
            of the cache (see `make_cache`) and of `prefill`, and the model's further inputs, such
            as `input_features`.

    Returns:
        (batch, length + new tokens): the prompt and its continuation, padded at the end.

    Raises:
        ContextLengthError: prompt and `max_new_tokens` exceed the model's context.
        InputError: an argument is unknown or contradicts another.
        UnsupportedOptionError: the model generates nothing.
    """
    run = start(model, input_ids, kwargs)
    rows = run.rows()
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
    return run.config, run.rows()


def stream_tokens(model, input_ids: mx.array | None = None, **kwargs: Any) -> Iterator[TokenStep]:
    """As `generate`, but yields each step's tokens as they come. Beam search cannot stream.

    Raises:
        InputError: `num_beams` above 1, or as in `generate`.
    """
    return start(model, input_ids, kwargs, streaming=True).steps()


@dataclass(frozen=True)
class Run:
    """A prompt that was fed, and all that a strategy needs to go on.

    prompt: (rows, length) ids.
    history: the same for the processors, see `without_padding`.
    logits: (rows, vocab) of the first new token.
    draft: step and cache of the draft model.
    """

    config: GenerationConfig
    prompt: mx.array
    history: mx.array
    logits: mx.array
    step: Step
    cache: Sequence[Any]
    ending: Ending
    processors: Sequence[LogitsProcessor]
    draft: tuple[Step, Sequence[Any]] | None

    def steps(self) -> Iterator[TokenStep]:
        """Greedy search or sampling, with the draft model if there is one."""
        common = {"ending": self.ending, "processors": self.processors}
        if self.draft is None:
            return search(self.logits, self.step, self.config, self.history, **common)
        return speculative_search(
            self.logits, self.step, self.cache, *self.draft, self.config, self.history, **common
        )

    def rows(self) -> list[Hypothesis]:
        """Whole answers, by whatever strategy the options ask for."""
        if self.config.num_beams > 1:
            return beam_search(
                self.logits,
                self.step,
                self.cache,
                self.config,
                self.history,
                ending=self.ending,
                processors=self.processors,
            )
        rows = [Hypothesis(0.0, [], []) for _ in range(len(self.prompt))]
        for token_step in self.steps():
            for row, token, logprob, ended in zip(
                rows, token_step.tokens, token_step.logprobs, token_step.ended, strict=True
            ):
                if not ended:
                    row.tokens.append(token)
                    row.logprobs.append(logprob)
                    row.score += logprob
        return rows


def resolve_config(model, kwargs: dict[str, Any], streaming: bool = False) -> GenerationConfig:
    """The options of a call; takes them out of `kwargs` and leaves the model's inputs.

    Beams that only the checkpoint's defaults ask for give way to streaming and to sampling.
    """
    defaults = model.generation_config or GenerationConfig()
    config = kwargs.pop("generation_config", None)
    names = {f.name for f in dataclasses.fields(GenerationConfig)}
    options = {name: kwargs.pop(name) for name in names & kwargs.keys()}
    if config is not None:
        config = config.filled_from(defaults)
    elif streaming or options.get("do_sample", options.get("temperature")):
        config = dataclasses.replace(defaults, num_beams=1)
    config = (config or defaults).updated(**options)
    if streaming and config.num_beams > 1:
        raise InputError("beam search knows its text only at the end: num_beams cannot stream")
    return config


def start(
    model, input_ids: mx.array | None, kwargs: dict[str, Any], streaming: bool = False
) -> Run:
    """Resolve the options and feed the prompt; arguments and errors as in `generate`."""
    check_generates(model)
    inputs = dict(kwargs)
    config = resolve_config(model, inputs, streaming)
    ending = Ending(config, inputs.pop("tokenizer", None))
    processors = inputs.pop("logits_processor", None) or ()
    processors = [processors] if callable(processors) else processors
    draft_model = inputs.pop("draft_model", None)
    if draft_model is not None:
        check_generates(draft_model)
    if draft_model is not None and config.num_beams > 1:
        raise InputError("num_beams and a draft model do not go together; choose one")
    cache = inputs.pop("past_key_values", None) or None
    if input_ids is not None:
        inputs["input_ids"] = input_ids
    prompt, attention_mask = model.prepare_prompt(inputs, config)
    check_prompt(prompt, model.vocab_size)
    cache_options = {name: inputs.pop(name) for name in inputs.keys() & set(model.cache_options)}
    accepted = inspect.signature(model.prefill).parameters.values()
    unknown = inputs.keys() - {p.name for p in accepted if p.kind is p.KEYWORD_ONLY}
    if unknown:
        raise InputError(f"generate has no argument {', '.join(sorted(unknown))}")
    hears = any(inputs.get(name) is not None for name in ("input_features", "audio_features"))
    if draft_model is not None and hears:
        raise InputError("a draft model proposes answers to text; it cannot hear")
    config = config.limited(prompt.shape[1])
    rotating = cache_options.get("max_kv_size") or (cache and cache[0].max_size)
    if not rotating:
        check_context(model, prompt.shape[1], config.max_new_tokens)
    padding = left_padding(attention_mask, prompt)
    if cache is None:
        cache = model.make_cache(padding, **cache_options)
    elif cache_options:
        raise InputError(f"past_key_values is a cache already, without {', '.join(cache_options)}")
    elif padding is not None and any(padding) and not cache[0].padded:
        raise InputError("past_key_values was made without the left_padding of these prompts")
    elif config.num_beams > 1:
        cache = [copy.copy(layer) for layer in cache]  # the caller's keeps its rows
    logits, step = model.prefill(uncached(prompt, cache), cache, **inputs)
    draft = None
    if draft_model is not None:
        check_context(draft_model, prompt.shape[1], config.max_new_tokens)
        draft_cache = draft_model.make_cache()
        draft_logits, draft_step = draft_model.prefill(prompt, draft_cache)
        if draft_logits.shape != logits.shape:
            raise InputError(
                f"the draft model knows {draft_logits.shape[-1]} tokens, the model "
                f"{logits.shape[-1]}; they need the same tokenizer"
            )
        draft = draft_step, draft_cache
    history = without_padding(prompt, attention_mask)
    return Run(config, prompt, history, logits, step, cache, ending, processors, draft)


def check_prompt(prompt: mx.array, vocab_size: int) -> None:
    """Raises `InputError` for what are no token ids."""
    if not isinstance(prompt, mx.array) or prompt.ndim != 2 or not prompt.size:
        shown = prompt.shape if isinstance(prompt, mx.array) else type(prompt).__name__
        raise InputError(f"input_ids are {shown}, but must be an MLX array (batch, length)")
    if not mx.issubdtype(prompt.dtype, mx.integer):
        raise InputError(f"input_ids are {prompt.dtype}, but must be integers")
    low, high = mx.min(prompt).item(), mx.max(prompt).item()
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"input_ids hold {low if low < 0 else high}, the model knows 0 to {vocab_size - 1}; "
            "after adding tokens to a tokenizer, call model.resize_token_embeddings"
        )


def check_generates(model) -> None:
    """Raises `UnsupportedOptionError` for a model without a language model's head."""
    if not hasattr(model, "prefill"):
        raise UnsupportedOptionError(
            f"a {type(model).__name__} generates no text; that takes a language model with its head"
        )


def check_context(model, prompt_length: int, max_new_tokens: int) -> None:
    """Raises `ContextLengthError` where a prompt and its answer are too long for a model."""
    if prompt_length + max_new_tokens > model.context_length:
        raise ContextLengthError(
            f"a prompt of {prompt_length} tokens and {max_new_tokens} new ones exceed the model's "
            f"context of {model.context_length}; max_new_tokens bounds the answer, and "
            "max_kv_size keeps only the latest tokens in view"
        )


def uncached(prompt: mx.array, cache: Sequence[Any]) -> mx.array:
    """What of a prompt a cache does not hold yet.

    Raises:
        InputError: it holds all of it.
    """
    held = cache[0].length
    if held >= prompt.shape[1]:
        raise InputError(
            f"past_key_values holds {held} positions already, and the prompt has only "
            f"{prompt.shape[1]}; give the whole conversation, or trim the cache"
        )
    return prompt[:, held:]


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
