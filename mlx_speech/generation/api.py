"""`generate`: a prompt in, token ids out; `prefill`, on which all that generates is built."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ..errors import ContextLengthError, InputError, UnsupportedOptionError
from ..layers.token_ids import as_mlx, check_token_ids
from .beam import Hypothesis, beam_search
from .config import GenerationConfig
from .protocols import GenerativeModel, LayerCache, Step
from .search import DecodingInputs, TokenStep, search
from .speculative import speculative_search
from .stopping import StoppingCriteria

#: what `generate` takes beside options, the cache's options and the model's inputs
_ARGUMENTS = ("draft_model", "logits_processor", "past_key_values", "tokenizer")


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
    run = prefill(model, input_ids, **kwargs)
    rows = [row.tokens for row in run.rows()]
    longest, fill = max(map(len, rows)), run.config.fill_token_id
    filled = [row + [fill] * (longest - len(row)) for row in rows]
    return mx.concatenate([run.prompt, mx.array(filled, run.prompt.dtype)], axis=1)


@dataclass(frozen=True)
class Prefilled(DecodingInputs):
    """A prompt that was fed, for the strategy that the options ask for.

    prompt: (rows, length) ids; `history` has the last token in place of padding.
    draft: step and cache of the draft model.
    """

    prompt: mx.array = field(kw_only=True)
    draft: tuple[Step, Sequence[LayerCache]] | None = None

    def steps(self) -> Iterator[TokenStep]:
        """Greedy search or sampling, with the draft model if there is one."""
        return search(self) if self.draft is None else speculative_search(self, *self.draft)

    def rows(self) -> list[Hypothesis]:
        """Whole answers, by whatever strategy the options ask for."""
        if self.config.num_beams > 1:
            return beam_search(self)
        rows = [Hypothesis(0.0, [], []) for _ in range(len(self.prompt))]
        for step in self.steps():
            columns = zip(rows, step.tokens, step.logprobs, step.ended, strict=True)
            for row, token, logprob, ended in columns:
                if not ended:
                    row.tokens.append(token)
                    row.logprobs.append(logprob)
                    row.score += logprob
        return rows


def resolve_config(
    model: GenerativeModel, arguments: dict[str, Any], streaming: bool = False
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The options of a call, and what else is among its arguments.

    Beams that only the checkpoint's defaults ask for give way to streaming and to sampling.

    Raises:
        InputError: an argument is unknown or contradicts another.
    """
    others = dict(arguments)
    names = [f.name for f in dataclasses.fields(GenerationConfig)]
    options = {name: others.pop(name) for name in names if name in others}
    config = others.pop("generation_config", None)
    known = {*_ARGUMENTS, *model.cache_options, *model.generation_inputs}
    if unknown := others.keys() - known:
        raise InputError(f"generate has no argument {', '.join(sorted(unknown))}")
    defaults = model.generation_config or GenerationConfig()
    if config is not None:
        if not isinstance(config, GenerationConfig):
            raise InputError.must_be("generation_config", config, "a GenerationConfig")
        config = config.filled_from(defaults)
    elif streaming or options.get("do_sample", options.get("temperature")):
        config = dataclasses.replace(defaults, num_beams=1)
    config = (config or defaults).updated(**options)
    if streaming and config.num_beams > 1:
        message = "beam search knows its text only at the end: {num_beams} cannot stream"
        raise InputError.about(message)
    if others.get("draft_model") is not None:
        check_generates(others["draft_model"])
        if config.num_beams > 1:
            raise InputError.about("{num_beams} and a draft model do not go together; choose one")
    return config, others


def prefill(
    model: GenerativeModel, input_ids: mx.array | None = None, *, streaming: bool = False, **kwargs
) -> Prefilled:
    """Resolve the options and feed the prompt; arguments and errors as in `generate`.

    Args:
        streaming: tokens are wanted as they come, which beam search cannot give.
    """
    check_generates(model)
    if input_ids is not None:
        kwargs["input_ids"] = input_ids
    config, inputs = resolve_config(model, kwargs, streaming)
    inputs = {name: as_mlx(value) for name, value in inputs.items()}
    stopping = StoppingCriteria(config, inputs.pop("tokenizer", None))
    processors = inputs.pop("logits_processor", None) or ()
    processors = [processors] if callable(processors) else processors
    if not isinstance(processors, Sequence) or not all(map(callable, processors)):
        raise InputError.must_be("logits_processor", processors, "one or more functions")
    callback = inputs.get("prompt_progress_callback")
    if callback is not None and not callable(callback):
        raise InputError.must_be("prompt_progress_callback", callback, "a function")
    draft_model = inputs.pop("draft_model", None)
    cache = inputs.pop("past_key_values", None) or None
    if cache is not None and not is_cache(cache):
        raise InputError.must_be("past_key_values", cache, "what make_cache returned")
    prompt, attention_mask = model.prepare_prompt(inputs, config)
    prompt = check_token_ids(prompt, model.vocab_size)
    has_audio = any(inputs.get(name) is not None for name in ("input_features", "audio_features"))
    if draft_model is not None and has_audio:
        raise InputError("a draft model proposes answers to text, not to recordings")
    config = config.limited(prompt.shape[1])
    cache_options = {name: inputs.pop(name) for name in inputs.keys() & set(model.cache_options)}
    if not (cache_options.get("max_kv_size") or (cache and cache[0].max_size)):
        check_context(model, prompt.shape[1], config.limit)
    padding = left_padding(attention_mask, prompt)
    if cache is None:
        cache = model.make_cache(padding, **cache_options)
    else:
        _check_cache(cache, prompt.shape[1], padding, cache_options)
        if config.num_beams > 1:
            cache = [copy.copy(layer) for layer in cache]  # the caller's keeps its rows
    logits, step = model.prefill(prompt[:, cache[0].length :], cache, **inputs)
    draft = None
    if draft_model is not None:
        draft = _prefill_draft(draft_model, prompt, config, logits.shape[-1])
    history = prompt
    if attention_mask is not None:
        # padding repeats the last token, so that penalties see no other ids
        history = mx.where(attention_mask != 0, prompt, prompt[:, -1:])
    fed = (config, history, logits, step, cache, stopping, processors)
    return Prefilled(*fed, prompt=prompt, draft=draft)


def is_cache(cache: Any) -> bool:
    """Whether it is a cache for every layer."""
    return isinstance(cache, Sequence) and all(isinstance(layer, LayerCache) for layer in cache)


def _check_cache(
    cache: Sequence[LayerCache], prompt_length: int, padding: list[int] | None, options: dict
) -> None:
    """Raises `InputError` where a caller's cache does not fit a prompt."""
    if options:
        raise InputError(f"past_key_values is a cache already, without {', '.join(options)}")
    if padding is not None and any(padding) and not cache[0].padded:
        raise InputError("past_key_values was made without the left_padding of these prompts")
    if cache[0].length >= prompt_length:
        lengths = f"{cache[0].length} positions already, and the prompt has only {prompt_length}"
        remedy = "give the whole conversation, or trim the cache"
        raise InputError(f"past_key_values holds {lengths}; {remedy}")


def _prefill_draft(
    model: GenerativeModel, prompt: mx.array, config: GenerationConfig, vocab_size: int
) -> tuple[Step, Sequence[LayerCache]]:
    """Feed the prompt to a draft model; its step and cache."""
    check_context(model, prompt.shape[1], config.limit)
    cache = model.make_cache()
    logits, step = model.prefill(prompt, cache)
    if logits.shape[-1] != vocab_size:
        sizes = f"{logits.shape[-1]} tokens, the model {vocab_size}"
        raise InputError(f"the draft model knows {sizes}; they need the same tokenizer")
    return step, cache


def check_generates(model: object) -> None:
    """Raises `UnsupportedOptionError` for a model without a language model's head."""
    if not hasattr(model, "prefill"):
        needed = "that takes a language model with its head"
        raise UnsupportedOptionError(f"a {type(model).__name__} generates no text; {needed}")


def check_context(model: GenerativeModel, prompt_tokens: int, new_tokens: int) -> None:
    """Raises `ContextLengthError` where a prompt and its answer are too long for a model."""
    limit = model.context_length
    if prompt_tokens + new_tokens > limit:
        message = (
            "a prompt of {prompt} tokens and {new} new ones exceed the model's context of "
            "{context}; {max_new_tokens} bounds the answer, and {max_kv_size} keeps only the "
            "latest tokens in view"
        )
        raise ContextLengthError.about(message, prompt=prompt_tokens, new=new_tokens, context=limit)


def left_padding(attention_mask: mx.array | None, input_ids: mx.array) -> list[int] | None:
    """How many positions at each row's start are padding.

    Raises:
        InputError: there is padding elsewhere.
    """
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, mx.array):
        raise InputError.must_be("attention_mask", attention_mask, "an array (batch, length)")
    if attention_mask.shape != input_ids.shape:
        shapes = f"{attention_mask.shape}, but input_ids are {input_ids.shape}"
        raise InputError(f"attention_mask is {shapes}")
    mask = attention_mask.astype(mx.int32)
    if mx.any(mask[:, 1:] < mask[:, :-1]).item() or not mx.all(mask[:, -1]).item():
        raise InputError("generate needs its prompts padded on the left")
    return (input_ids.shape[1] - mask.sum(axis=1)).tolist()
