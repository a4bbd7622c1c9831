"""What changes the scores of the next token, whatever the strategy."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..fields import Range, fitted
from ..layers.token_ids import as_mlx
from .config import GenerationConfig

#: (tokens so far (rows, length), scores (rows, vocab)) -> scores
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
#: (number of the prompt, tokens so far (length,)) -> ids that may come next
AllowedTokens = Callable[[int, mx.array], Sequence[int]]


def logits_processors(
    config: GenerationConfig,
    prompt_length: int,
    vocab_size: int,
    padding: Sequence[int] | None = None,
    others: Sequence[LogitsProcessor] = (),
    allowed_tokens: AllowedTokens | None = None,
) -> list[LogitsProcessor]:
    """All that a configuration asks for, in the order of transformers, and then a caller's own.

    Args:
        config: settled (`limited`).
        padding: of each prompt, how many tokens at its start are none.

    Raises:
        InputError: an option names a token that the vocabulary has not.
    """
    eos = [token for token in config.eos_token_ids if 0 <= token < vocab_size]

    def known(option: str, value: int | Sequence[int] | None) -> list[int]:
        """An option's ids, which have to be the model's."""
        ids = [] if value is None else [value] if isinstance(value, int) else list(value)
        if wrong := [token for token in ids if not 0 <= token < vocab_size]:
            message = f"{option} is {wrong[0]}, but the vocabulary has {vocab_size} tokens"
            raise InputError(message)
        return ids

    found: list[LogitsProcessor] = []
    if config.repetition_penalty not in (None, 1.0):
        found.append(repetition_penalty(config.repetition_penalty, padding))
    if config.no_repeat_ngram_size:
        found.append(no_repeat_ngram(config.no_repeat_ngram_size))
    if config.bad_words_ids:
        words = [known("bad_words_ids", word) for word in config.bad_words_ids]
        # what ends an answer is none
        words = [word for word in words if len(word) > 1 or word[0] not in eos]
        found.append(no_bad_words(words, vocab_size))
    if config.min_new_tokens and eos:
        least = prompt_length + config.min_new_tokens
        found.append(suppress(eos, vocab_size, lambda length: length < least))
    if allowed_tokens is not None:
        found.append(prefix_constrained(allowed_tokens, config.num_beams))
    if ids := known("forced_bos_token_id", config.forced_bos_token_id):
        found.append(force(ids, vocab_size, 1))
    if ids := known("forced_eos_token_id", config.forced_eos_token_id):
        found.append(force(ids, vocab_size, prompt_length + config.limit - 1))
    if ids := known("suppress_tokens", config.suppress_tokens):
        found.append(suppress(ids, vocab_size))
    if ids := known("begin_suppress_tokens", config.begin_suppress_tokens):
        forced = prompt_length == 1 and config.forced_bos_token_id is not None
        begin = prompt_length + forced
        found.append(suppress(ids, vocab_size, lambda length: length == begin))
    return [*found, *map(checked, others)]


def _among(ids: Sequence[int], vocab_size: int) -> mx.array:
    """Boolean (vocab,): which tokens are these."""
    return mx.array(np.isin(np.arange(vocab_size), ids))


def suppress(
    ids: Sequence[int], vocab_size: int, when: Callable[[int], bool] = lambda length: True
) -> LogitsProcessor:
    """Make tokens impossible, at the lengths that are said."""
    among = _among(ids, vocab_size)

    def process(tokens: mx.array, scores: mx.array) -> mx.array:
        return mx.where(among, -mx.inf, scores) if when(tokens.shape[1]) else scores

    return process


def force(ids: Sequence[int], vocab_size: int, length: int) -> LogitsProcessor:
    """Leave only these tokens possible, with a score of 0, after `length` tokens."""
    forced = mx.where(_among(ids, vocab_size), 0.0, -mx.inf)

    def process(tokens: mx.array, scores: mx.array) -> mx.array:
        return mx.broadcast_to(forced, scores.shape) if tokens.shape[1] == length else scores

    return process


def repetition_penalty(penalty: float, padding: Sequence[int] | None = None) -> LogitsProcessor:
    """Divide the positive scores of tokens that occurred, multiply the negative ones
    (https://arxiv.org/abs/1909.05858)."""
    starts = mx.array(padding) if padding and any(padding) else None

    def process(tokens: mx.array, scores: mx.array) -> mx.array:
        columns = _columns(tokens, scores)
        if starts is not None:
            first = mx.repeat(starts, len(tokens) // len(starts))[:, None]
            columns = mx.where(mx.arange(tokens.shape[1]) < first, scores.shape[1], columns)
        widened = mx.pad(scores, [(0, 0), (0, 1)])
        seen = mx.take_along_axis(widened, columns, axis=-1)
        seen = mx.where(seen < 0, seen * penalty, seen / penalty)
        return mx.put_along_axis(widened, columns, seen, axis=-1)[:, :-1]

    return process


def _columns(tokens: mx.array, scores: mx.array) -> mx.array:
    """Columns of the scores that tokens have, or one behind the last: a prompt may hold one that
    has none, such as that of audio, and MLX would write to other memory."""
    return mx.minimum(tokens, scores.shape[1])


def no_repeat_ngram(size: int) -> LogitsProcessor:
    """Make tokens impossible that would complete a sequence of `size` tokens a second time."""

    def process(tokens: mx.array, scores: mx.array) -> mx.array:
        length = tokens.shape[1]
        if length < size:
            return scores
        ends = tokens[:, size - 1 :]
        again = mx.ones(ends.shape, mx.bool_)
        for place in range(size - 1):
            before = tokens[:, place : place + ends.shape[1]]
            again = again & (before == tokens[:, length - size + 1 + place][:, None])
        rows, columns = mx.arange(len(tokens))[:, None], _columns(ends, scores)
        count = mx.zeros((len(tokens), scores.shape[1] + 1), mx.int32)
        count = count.at[rows, columns].add(again.astype(mx.int32))
        return mx.where(count[:, :-1] > 0, -mx.inf, scores)

    return process


def no_bad_words(words: Sequence[Sequence[int]], vocab_size: int) -> LogitsProcessor:
    """Make the last token of each word impossible after its others."""
    single = _among([word[0] for word in words if len(word) == 1], vocab_size)
    longer = [(mx.array(w[:-1]), _among(w[-1:], vocab_size)) for w in words if len(w) > 1]

    def process(tokens: mx.array, scores: mx.array) -> mx.array:
        scores = mx.where(single, -mx.inf, scores)
        for prefix, last in longer:
            if prefix.size <= tokens.shape[1]:
                begun = mx.all(tokens[:, -prefix.size :] == prefix, axis=1, keepdims=True)
                scores = mx.where(begun & last, -mx.inf, scores)
        return scores

    return process


def prefix_constrained(allowed: AllowedTokens, num_beams: int) -> LogitsProcessor:
    """Leave only those tokens possible that a function allows; it reads them, and so waits.

    The processor raises `InputError` where these are none.
    """

    def process(tokens: mx.array, scores: mx.array) -> mx.array:
        vocab_size, masks = scores.shape[-1], []
        hint = Sequence[Annotated[int, Range(0, vocab_size - 1)]]
        for number, row in enumerate(tokens):
            found = allowed(number // num_beams, row)
            ids = fitted("what prefix_allowed_tokens_fn returned", found, hint)
            if not ids:
                raise InputError("prefix_allowed_tokens_fn allows no token at all")
            masks.append(_among(ids, vocab_size))
        return mx.where(mx.stack(masks), scores, -mx.inf)

    return process


def checked(process: LogitsProcessor) -> LogitsProcessor:
    """A caller's function; `InputError` where its result is no scores of the same shape."""

    def checking(tokens: mx.array, scores: mx.array) -> mx.array:
        result: Any = as_mlx(process(tokens, scores))
        if not isinstance(result, mx.array) or result.shape != scores.shape:
            found = result.shape if isinstance(result, mx.array) else type(result).__name__
            name = f"what logits_processor {getattr(process, '__name__', process)} returned"
            raise InputError.must_be(name, found, f"scores {scores.shape}")
        return result

    return checking
