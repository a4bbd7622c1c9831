"""`generate`: a prompt in, token ids out; `prefill`, on which all that generates is built."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..layers.model_output import take_aliases
from ..layers.token_ids import as_mlx
from .beam import Hypothesis, beam_search
from .checks import (
    ARGUMENTS,
    check_cache,
    check_context,
    check_drafting,
    check_function,
    check_generates,
    is_cache,
    left_padding,
)
from .config import DRAFT_MODEL_TOKENS, GenerationConfig
from .drafts import DraftSource, ModelDraft, TextDraft
from .outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
    ScoreRecord,
)
from .processors import logits_processors
from .protocols import GenerativeModel, LayerCache, Streamer
from .sampling import Sampler
from .search import DecodingInputs, TokenStep, search
from .speculative import Answer, Speculation
from .stopping import StoppingCriteria


def generate(
    model: GenerativeModel,
    inputs: mx.array | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    streamer: Streamer | None = None,
    synced_gpus: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Continue prompts, or answer recordings, with the strategy that the options ask for.

    Args:
        model: has `prepare_prompt`, `make_cache` and `prefill`.
        inputs: the model's main input: `input_ids` (batch, length), padded on the left where
            lengths differ; of an encoder-decoder, what it encodes. The answer then starts from a
            token of its own.
        generation_config: the options; what it does not say, the checkpoint's says.
        streamer: its `put` gets the prompts' ids, and each token as it is chosen, (batch,); then
            its `end` is called. Beam search cannot stream.
        synced_gpus: without effect: there is one device.
        attention_mask: (batch, length), zero at padding; by default at each `pad_token_id`, unless
            that ends answers as well.
        inputs_embeds: (batch, length, hidden_size), fed instead of `input_ids`, before the
            embedding multiplier. Without `input_ids` only what is new comes back.
        logits_processor: functions of (tokens so far (rows, length), scores (rows, vocab)) that
            give other scores, applied in order.
        stopping_criteria: functions of (tokens so far, scores of each step or None) that say
            whether the rows (rows,), or all of them, have ended. With drafts, rows are asked about
            one by one.
        prefix_allowed_tokens_fn: function of (number of the prompt, its tokens so far) that gives
            the ids that may come next.
        tokenizer: what decodes, for `stop_strings`.
        draft_model, or assistant_model: a smaller model with the same vocabulary, for speculative
            decoding of one prompt.
        draft_past_key_values: its cache, which holds the beginning of the prompt already.
        drafts: for each prompt ids that its answer may be, such as a first guess at it, for
            speculative decoding; what follows one that the model does not know is left out.
        past_key_values, or cache: one that holds the beginning of the prompt already
            (`make_cache`).
        kwargs: single options that differ from the configuration's (see `GenerationConfig`), those
            of the cache (see `make_cache`) and of `prefill`, and the model's further inputs, such
            as `input_features`.

    Returns:
        (batch, length + new tokens): the prompt and its continuation, padded at the end; or with
        `return_dict_in_generate` one of the outputs in `mlx_speech.generation.outputs`.

    Raises:
        ContextLengthError: prompt and `max_new_tokens` exceed the model's context.
        InputError: an argument is unknown or contradicts another.
        UnsupportedOptionError: the model generates nothing, or an option is not supported.
    """
    if streamer is not None and not isinstance(streamer, Streamer):
        raise InputError.must_be("streamer", streamer, "an object with put and end")
    kwargs["generation_config"] = generation_config
    run = prefill(model, inputs, streaming=streamer is not None, **kwargs)
    if streamer is not None:
        streamer.put(run.prompt)
    rows = run.rows(streamer)
    if streamer is not None:
        streamer.end()
    if run.config.return_dict_in_generate:
        return run.output(rows, getattr(model.config, "is_encoder_decoder", False))
    return run.sequences(rows)


@dataclass(frozen=True)
class Prefilled(DecodingInputs):
    """A prompt that was fed, for the strategy that the options ask for.

    fed: positions of the prompt; more than it has ids where embeddings were fed instead.
    speculation: the rows, where there are drafts.
    """

    fed: int = field(kw_only=True)
    speculation: Speculation | None = None

    @property
    def prompt(self) -> mx.array:
        """(rows, length) ids, one row for each answer that is sampled."""
        return self.history

    def steps(self) -> Iterator[TokenStep]:
        """Greedy search or sampling, with drafts if there are some."""
        return search(self) if self.speculation is None else self.speculation.steps()

    def rows(self, streamer: Streamer | None = None) -> list[Hypothesis]:
        """Whole answers, by whatever strategy the options ask for."""
        if self.config.num_beams > 1:
            return beam_search(self)
        rows = [Hypothesis(0.0, [], []) for _ in range(len(self.prompt))]
        for step in self.steps():
            if streamer is not None:
                streamer.put(mx.array(step.tokens))
            columns = zip(rows, step.tokens, step.logprobs, step.ended, strict=True)
            for row, token, logprob, ended in columns:
                if not ended:
                    row.tokens.append(token)
                    row.logprobs.append(logprob)
                    row.score += logprob
        return rows

    def stopped(self, row: Hypothesis) -> bool:
        """Whether an answer came to an end of its own, rather than to its limit."""
        return len(row.tokens) < self.config.limit or self.stopping(row.tokens)

    def sequences(self, rows: Sequence[Hypothesis]) -> mx.array:
        """Prompts and their answers, (answers, length)."""
        prompt = mx.repeat(self.prompt, len(rows) // len(self.prompt), axis=0)
        answers = _filled([row.tokens for row in rows], self.config.fill_token_id)
        return mx.concatenate([prompt, answers.astype(prompt.dtype)], axis=1)

    def output(self, rows: Sequence[Hypothesis], is_encoder_decoder: bool) -> Any:
        """The same with the cache and the scores of the steps."""
        config, record = self.config, self.record or ScoreRecord()
        if self.speculation is not None:
            answers = self.speculation.answers
            record = ScoreRecord.of_rows([answer.record or ScoreRecord() for answer in answers])
        found: dict[str, Any] = {"sequences": self.sequences(rows)}
        if config.num_beams > 1:
            found["beam_indices"] = _filled([row.beams for row in rows], -1)
            if config.output_scores:
                found["sequences_scores"] = mx.array([row.score for row in rows])
            steps = None
            kinds: tuple = GenerateBeamDecoderOnlyOutput, GenerateBeamEncoderDecoderOutput
        else:
            steps = max(len(row.tokens) for row in rows)
            if self.speculation is None:  # the search was a step ahead
                surplus = self.cache[0].length - (self.fed + steps - 1)
                for layer in self.cache:
                    layer.trim(surplus)
            kinds = GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput
        for kept in fields(record):
            if (values := getattr(record, kept.name)) is not None:
                found[kept.name] = tuple(values[:steps])
        if config.use_cache:
            found["past_key_values"] = self.cache
        return kinds[is_encoder_decoder](**found)


def _filled(rows: Sequence[Sequence[int]], fill: int) -> mx.array:
    longest = max(map(len, rows))
    return mx.array([[*row, *[fill] * (longest - len(row))] for row in rows])


def resolve_config(
    model: GenerativeModel, arguments: dict[str, Any], streaming: bool = False
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The options of a call, and what else is among its arguments: those that are not None.

    Beams that only the checkpoint's defaults ask for give way to streaming and to sampling.

    Raises:
        InputError: an argument is unknown or contradicts another.
    """
    others = dict(arguments)
    names = [f.name for f in fields(GenerationConfig)]
    options = {name: others.pop(name) for name in names if name in others}
    others = {name: value for name, value in others.items() if value is not None}
    take_aliases(others)
    if "assistant_model" in others:
        others["draft_model"] = others.pop("assistant_model")
    config = others.pop("generation_config", None)
    known = {*ARGUMENTS, *model.cache_options, *model.generation_inputs}
    if unknown := others.keys() - known:
        raise InputError(f"generate has no argument {', '.join(sorted(unknown))}")
    if not isinstance(config, GenerationConfig | None):
        raise InputError.must_be("generation_config", config, "a GenerationConfig")
    config = model.generation_config.overridden(config, streaming, **options)
    if streaming and config.num_beams > 1:
        message = "beam search knows its text only at the end: {num_beams} cannot stream"
        raise InputError.about(message)
    if "draft_model" in others:
        check_generates(others["draft_model"])
        if "drafts" in others:
            raise InputError("drafts and a draft model do not go together; choose one")
    elif "draft_past_key_values" in others:
        raise InputError("draft_past_key_values are of a draft_model; give that, too")
    if {"draft_model", "drafts"} & others.keys():
        if config.num_beams > 1:
            raise InputError.about("{num_beams} and drafts do not go together; choose one")
        if config.sampling:
            raise InputError("drafts are checked without sampling; choose one")
    return config, others


def prefill(
    model: GenerativeModel, inputs: mx.array | None = None, *, streaming: bool = False, **kwargs
) -> Prefilled:
    """Resolve the options and feed the prompt; arguments and errors as in `generate`.

    Args:
        streaming: tokens are wanted as they come, which beam search cannot give.
    """
    check_generates(model)
    if inputs is not None:
        name = model.main_input_name
        if kwargs.get(name) is not None:
            raise InputError(f"inputs and {name} are the same; give one of them")
        kwargs[name] = inputs
    config, given = resolve_config(model, kwargs, streaming)
    given = {name: as_mlx(value) for name, value in given.items()}
    stopping = StoppingCriteria(
        config, given.pop("tokenizer", None), _functions(given, "stopping_criteria")
    )
    own = _functions(given, "logits_processor")
    allowed = given.pop("prefix_allowed_tokens_fn", None)
    check_function("prefix_allowed_tokens_fn", allowed)
    check_function("prompt_progress_callback", given.get("prompt_progress_callback"))
    drafting = {name: given.pop(name) for name in _DRAFTING & given.keys()}
    if isinstance(drafting.get("drafts"), mx.array):
        drafting["drafts"] = drafting["drafts"].tolist()
    prompt, attention_mask = model.prepare_prompt(given, config)
    embeds = given.get("inputs_embeds")
    rows, length = prompt.shape if embeds is None else embeds.shape[:2]
    padding = left_padding(attention_mask, (rows, length))
    num_samples = config.num_return_sequences if config.num_beams == 1 else 1
    reordered = config.num_beams > 1 or num_samples > 1
    cache, room = _take_cache(model, given, length, None if drafting else padding, reordered)
    config = config.limited(length, room)
    check_context(model, length, config.limit, room)
    held = cache[0].length
    if drafting:
        check_drafting(drafting, given, cache, rows)
        starts = padding or [0] * rows
        prompts = [prompt[row : row + 1, start:] for row, start in enumerate(starts)]
        check_cache(cache, min(row.shape[1] for row in prompts), None, {})
        answers = _answers(model, prompts, config, own, allowed, **drafting)
        if "draft_model" in drafting:
            config = replace(config, num_draft_tokens=config.num_draft_tokens or DRAFT_MODEL_TOKENS)
        speculation = Speculation(model, list(cache), config, stopping, answers)
        logits = speculation.start(partial(model.prefill, cache=speculation.cache, **given), held)
        cache = speculation.cache  # empty once another batch has taken in the rows
        fed = logits, partial(model.step, cache=cache), cache
        return Prefilled(config, prompt, *fed, stopping, fed=length, speculation=speculation)
    if config.draft_acceptance is not None:
        message = "{draft_acceptance} is for drafts; give drafts or a draft_model, or leave it out"
        raise InputError.about(message)
    if embeds is not None:
        given["inputs_embeds"] = embeds[:, held:]
    logits = model.prefill(prompt[:, held:], cache, **given)[:, -1]
    if num_samples > 1:
        source = mx.repeat(mx.arange(rows), num_samples)
        for layer in cache:
            layer.reorder(source)
        logits, prompt = logits[source], prompt[source]
        padding = padding and [count for count in padding for _ in range(num_samples)]
    padding = padding if prompt.shape[1] == length else None
    processors = logits_processors(config, prompt.shape[1], logits.shape[-1], padding, own, allowed)
    after = logits, partial(model.step, cache=cache), cache
    how = stopping, processors, _record(config)
    return Prefilled(config, prompt, *after, *how, fed=length)


_DRAFTING = {"drafts", "draft_model", "draft_past_key_values"}


def _record(config: GenerationConfig) -> ScoreRecord | None:
    """What keeps the scores of each step, if somebody wants them."""
    if not config.return_dict_in_generate:
        return None
    asked = config.output_scores, config.output_logits
    return ScoreRecord(*([] if wanted else None for wanted in asked))


def _functions(given: dict[str, Any], name: str) -> Sequence[Callable]:
    """A caller's functions, taken out of the arguments."""
    found = given.pop(name, ())
    found = [found] if callable(found) else found
    if not isinstance(found, Sequence) or not all(map(callable, found)):
        raise InputError.must_be(name, found, "one or more functions")
    return found


def _take_cache(
    model: GenerativeModel,
    given: dict[str, Any],
    length: int,
    padding: list[int] | None,
    reordered: bool,
) -> tuple[Sequence[LayerCache], int | None]:
    """The cache that the arguments ask for, taken out of them, and for how many tokens the context
    has room after a prompt of `length`: None where the cache keeps the latest only.

    Args:
        reordered: its rows will be: a caller's keeps them.
    """
    options = {name: given.pop(name) for name in given.keys() & set(model.cache_options)}
    cache = given.pop("past_key_values", None)
    if cache is not None and not is_cache(cache):
        raise InputError.must_be("past_key_values", cache, "what make_cache returned")
    if cache:
        check_cache(cache, length, padding, options)
        if reordered:
            cache = [copy.copy(layer) for layer in cache]
    else:
        cache = model.make_cache(padding, **options)
    bounded = getattr(cache[0], "max_size", None)
    return cache, None if bounded else model.context_length - length


def _answers(
    model: GenerativeModel,
    prompts: Sequence[mx.array],
    config: GenerationConfig,
    own: Sequence[Callable],
    allowed: Callable | None,
    drafts: Sequence[Sequence[int]] = (),
    draft_model: GenerativeModel | None = None,
    draft_past_key_values: Sequence[LayerCache] | None = None,
) -> list[Answer]:
    """A row for each prompt (1, length), with what changes its scores and its source of drafts.

    Args:
        own: the caller's logits processors.
        allowed: see `prefix_allowed_tokens_fn`.
    """
    vocab_size = model.get_output_embeddings().weight.shape[0]
    answers = []
    for row, prompt in enumerate(prompts):
        only = allowed and (lambda _, ids, row=row: allowed(row, ids))
        processors = logits_processors(config, prompt.shape[1], vocab_size, None, own, only)
        source: DraftSource
        if draft_model is None:
            source = TextDraft([*itertools.takewhile(model.is_text_token, drafts[row])])
        else:
            propose = Sampler(config, processors)
            source = _model_draft(
                draft_model, prompt, config, vocab_size, propose, draft_past_key_values
            )
        record = _record(config)
        sample = Sampler(config, processors, record)
        answers.append(Answer(prompt, source, config.limit, sample, record))
    return answers


def _model_draft(
    model: GenerativeModel,
    prompt: mx.array,
    config: GenerationConfig,
    vocab_size: int,
    sample: Sampler,
    cache: Sequence[LayerCache] | None,
) -> ModelDraft:
    """Feed a prompt to a draft model, as far as its cache does not hold it."""
    length = prompt.shape[1]
    check_context(model, length, config.limit, model.context_length - length)
    if cache:
        check_cache(cache, length, None, {})
    else:
        cache = model.make_cache()
    held = cache[0].length
    logits = model.prefill(prompt[:, held:], cache)[:, -1]
    if logits.shape[-1] != vocab_size:
        sizes = f"{logits.shape[-1]} tokens, the model {vocab_size}"
        raise InputError(f"the draft model knows {sizes}; they need the same tokenizer")
    return ModelDraft(model, logits, cache, prompt, sample)
