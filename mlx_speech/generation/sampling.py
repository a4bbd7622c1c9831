"""From logits to tokens: penalties, truncation of the distribution, sampling."""

from collections.abc import Callable, Sequence

import mlx.core as mx

from ..errors import InputError
from .config import GenerationConfig

#: (tokens so far (rows, length), scores (rows, vocab)) -> scores
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]

_LEAST_TEMPERATURE = 1e-6  # divided by less, scores would overflow


def logits_processors(config: GenerationConfig) -> list[LogitsProcessor]:
    """What to apply to the scores of the next token, in order, whatever the strategy."""
    processors = []
    if config.repetition_penalty not in (None, 1.0):
        processors.append(repetition_penalty(config.repetition_penalty))
    if config.forced_bos_token_id is not None:
        processors.append(forced_bos(config.forced_bos_token_id))
    return processors


def forced_bos(token: int) -> LogitsProcessor:
    """Leave only `token` possible, with probability 1, right after a decoder's starting token."""

    def process(tokens: mx.array, scores: mx.array) -> mx.array:
        if tokens.shape[1] > 1:
            return scores
        size = scores.shape[-1]
        if not 0 <= token < size:
            message = f"forced_bos_token_id is {token}, but the vocabulary has {size} tokens"
            raise InputError(message)
        forced = mx.where(mx.arange(size) == token, 0.0, -mx.inf)
        return mx.broadcast_to(forced, scores.shape)

    return process


def repetition_penalty(penalty: float) -> LogitsProcessor:
    """Divide the positive scores of tokens that occurred, multiply the negative ones
    (https://arxiv.org/abs/1909.05858)."""

    def process(tokens: mx.array, scores: mx.array) -> mx.array:
        seen = mx.take_along_axis(scores, tokens, axis=-1)
        seen = mx.where(seen < 0, seen * penalty, seen / penalty)
        return mx.put_along_axis(scores, tokens, seen, axis=-1)

    return process


class Sampler:
    """Picks each row's next token: processors, then the likeliest or a sample.

    Args:
        config: the options.
        processors: applied to the scores after those that `config` asks for.
    """

    def __init__(self, config: GenerationConfig, processors: Sequence[LogitsProcessor] = ()):
        self.processors = [*logits_processors(config), *processors]
        self._choose = make_sampler(config)

    def __call__(self, logits: mx.array, history: mx.array) -> tuple[mx.array, mx.array]:
        """Tokens (rows, 1) and their log-probabilities under the model (rows, 1).

        Args:
            logits: (rows, vocab).
            history: (rows, length) ids so far, for the processors.
        """
        scores = logits = logits.astype(mx.float32)
        for process in self.processors:
            scores = process(history, scores)
        token = self._choose(scores)[:, None]
        chosen = mx.take_along_axis(logits, token, axis=-1)
        return token, chosen - mx.logsumexp(logits, axis=-1, keepdims=True)


def make_sampler(config: GenerationConfig) -> Callable[[mx.array], mx.array]:
    """Logits (rows, vocab) -> chosen tokens (rows,): the likeliest, or samples."""
    if not config.sampling:
        return lambda logits: mx.argmax(logits, axis=-1)
    key = None if config.seed is None else mx.random.key(config.seed)

    def sample(logits: mx.array) -> mx.array:
        nonlocal key
        key, subkey = (None, None) if key is None else mx.random.split(key)
        return mx.random.categorical(truncate(logits, config), key=subkey)

    return sample


def truncate(logits: mx.array, config: GenerationConfig) -> mx.array:
    """Logits with the temperature applied and unlikely tokens at minus infinity.

    Order and meaning are those of transformers: temperature, then the `top_k` likeliest, then the
    smallest set whose probability reaches `top_p`, then those of at least `min_p` times the
    likeliest one's probability. One token always stays.
    """
    if config.temperature:
        logits = logits / max(config.temperature, _LEAST_TEMPERATURE)
    vocab_size = logits.shape[-1]
    if config.top_k and config.top_k < vocab_size:
        threshold = mx.min(mx.topk(logits, config.top_k, axis=-1), axis=-1, keepdims=True)
        logits = mx.where(logits < threshold, -mx.inf, logits)
    if config.top_p is not None and config.top_p < 1.0:
        order = mx.argsort(logits, axis=-1)
        ascending = mx.take_along_axis(mx.softmax(logits, axis=-1), order, axis=-1)
        drop = mx.cumsum(ascending, axis=-1) <= 1.0 - config.top_p
        drop = drop & (mx.arange(vocab_size) < vocab_size - 1)
        drop = mx.put_along_axis(mx.zeros_like(drop), order, drop, axis=-1)
        logits = mx.where(drop, -mx.inf, logits)
    if config.min_p:
        probabilities = mx.softmax(logits, axis=-1)
        least = config.min_p * probabilities.max(axis=-1, keepdims=True)
        logits = mx.where(probabilities < least, -mx.inf, logits)
    return logits
