"""`generate` and `stream_generate`: a prompt as text, an answer as text."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import mlx.core as mx

from ..errors import InputError, UnsupportedOptionError
from ..fields import Range, fitted
from ..layers.model_output import take_aliases
from .api import Prefilled, prefill
from .checks import check_generates, check_one_text, is_cache
from .protocols import GenerativeModel, TextTokenizer
from .streaming import answer_text, stream_text

_Id = Annotated[int, Range(-(2**31), 2**31 - 1)]  # whether the model knows it is checked later
#: a text; messages of a conversation, `{"role": ..., "content": ...}`; or token ids
Prompt = str | Sequence[dict[str, Any]] | Sequence[int]


@dataclass(frozen=True)
class GenerationResponse:
    """One step of an answer.

    text: what it made certain, often empty; all of them together are the answer.
    token: its id.
    logprob: the token's log-probability under the model.
    prompt_tokens, generation_tokens: how many so far.
    prompt_tps, generation_tps: tokens per second.
    peak_memory: in GB.
    finish_reason: in the last response `"stop"` (an end was chosen) or `"length"` (the limit).
    """

    text: str
    token: int
    logprob: float
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    finish_reason: Literal["stop", "length"] | None = None


def generate(model: GenerativeModel, processor: Any, prompt: Prompt, **options: Any) -> str:
    """The answer to a prompt.

    Args:
        model, processor: what `load` returned; of a speech model, its processor.
        prompt: a text, taken as it is; messages, put into the checkpoint's chat template; or ids.
        options: those of `mlx_speech.generation.generate`: of `GenerationConfig` (e.g.
            `max_new_tokens`, `temperature`, `num_beams`, `stop_strings`), of the cache (e.g.
            `max_kv_size`, `kv_bits`), a `draft_model`, and so on.

    Returns:
        The text up to what ended it, without white space around it. It ends before a stop string,
        and what white space is before that stays.

    Raises:
        ContextLengthError: prompt and answer are longer than the model's context.
        InputError: an option is unknown or contradicts another.
        UnsupportedOptionError: the model does not answer texts.
    """
    return generate_response(model, processor, prompt, **options).text


def generate_response(
    model: GenerativeModel, processor: Any, prompt: Prompt, **options: Any
) -> GenerationResponse:
    """As `generate`, but with the numbers of `stream_generate`'s last response."""
    run, tokenizer, prompt_tokens, begin = _prefill(model, processor, prompt, options)
    mx.eval(run.logits)
    fed = time.perf_counter()
    (row,) = run.rows()
    return GenerationResponse(
        text=answer_text(run, row.tokens, tokenizer),
        token=row.tokens[-1],
        logprob=row.logprobs[-1],
        prompt_tokens=prompt_tokens,
        prompt_tps=prompt_tokens / (fed - begin),
        generation_tokens=len(row.tokens),
        generation_tps=len(row.tokens) / (time.perf_counter() - fed),
        peak_memory=mx.get_peak_memory() / 1e9,
        finish_reason="stop" if run.stopped(row) else "length",
    )


def stream_generate(
    model: GenerativeModel, processor: Any, prompt: Prompt, **options: Any
) -> Generator[GenerationResponse, None, None]:
    """As `generate`, but yields the answer as it comes. Beam search cannot stream.

    The texts of all responses together are exactly what `generate` returns.
    """
    return _responses(*_prefill(model, processor, prompt, options, streaming=True))


def _prefill(
    model: GenerativeModel, processor: Any, prompt: Prompt, options: dict, streaming: bool = False
) -> tuple[Prefilled, TextTokenizer, int, float]:
    """Feed a prompt; gives the run, the tokenizer, how many tokens were fed, and when it began."""
    check_generates(model)
    if getattr(model.config, "is_encoder_decoder", False):
        what = f"a {model.config.model_type} model answers recordings, not texts; transcribe them"
        raise UnsupportedOptionError(what)
    tokenizer = text_tokenizer(processor)
    ids = prompt_ids(tokenizer, prompt)
    take_aliases(options)
    cache = options.get("past_key_values")
    new_tokens = len(ids) - (cache[0].length if cache and is_cache(cache) else 0)
    mx.reset_peak_memory()
    begin = time.perf_counter()
    prompt = mx.array([ids])
    # whatever is in a text was meant, also where it is a token for padding
    options = {"tokenizer": tokenizer, "attention_mask": mx.ones_like(prompt), **options}
    run = prefill(model, prompt, streaming=streaming, **options)
    check_one_text(run.config)
    return run, tokenizer, new_tokens, begin


def _responses(
    run: Prefilled, tokenizer: TextTokenizer, prompt_tokens: int, begin: float
) -> Generator[GenerationResponse, None, None]:
    prompt_tps = 0.0
    for count, step in enumerate(stream_text(run, tokenizer), 1):
        now = time.perf_counter()
        if count == 1:
            prompt_tps, begin = prompt_tokens / (now - begin), now
        yield GenerationResponse(
            **vars(step),
            prompt_tokens=prompt_tokens,
            prompt_tps=prompt_tps,
            generation_tokens=count,
            generation_tps=(count - 1) / (now - begin) if count > 1 else 0.0,
            peak_memory=mx.get_peak_memory() / 1e9,
        )


def text_tokenizer(processor: Any) -> TextTokenizer:
    """The tokenizer of a processor, or the tokenizer itself.

    Raises:
        InputError: it is none, or that of a model which answers no texts.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not isinstance(tokenizer, TextTokenizer):
        what = f"a {type(processor).__name__} belongs to a model that answers no texts"
        other = "choose one that does, and the processor that load returns with it"
        raise InputError(f"{what}; {other}")
    return tokenizer


def prompt_ids(tokenizer: TextTokenizer, prompt: Prompt) -> list[int]:
    """Token ids of a prompt of any kind.

    Raises:
        InputError: there is nothing in it, or it is none.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    elif isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], dict):
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer.encode(text, add_special_tokens=False)
    else:
        try:
            ids = list(fitted("prompt", prompt, list[_Id]))
        except InputError:
            message = "a prompt is a text, the messages of a conversation, or token ids"
            raise InputError(message) from None
    if not ids:
        raise InputError("the prompt is empty")
    return ids
