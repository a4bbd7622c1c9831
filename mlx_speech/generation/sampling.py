"""From logits to tokens: truncation of the distribution, sampling."""

import secrets
import threading
from collections.abc import Callable, Sequence

import mlx.core as mx

from .config import GenerationConfig
from .outputs import ScoreRecord
from .processors import LogitsProcessor

_LEAST_TEMPERATURE = 1e-6  # divided by less, scores would overflow


class Sampler:
    """Picks each row's next token: processors, then the likeliest or a sample.

    Args:
        config: the options.
        processors: applied to the scores, see `logits_processors`.
        record: keeps the scores of each step.
    """

    def __init__(
        self,
        config: GenerationConfig,
        processors: Sequence[LogitsProcessor] = (),
        record: ScoreRecord | None = None,
    ):
        self.processors = processors
        self._record = record or ScoreRecord()
        self._config = config
        self._choose = make_sampler(config)

    def __call__(self, logits: mx.array, history: mx.array) -> tuple[mx.array, mx.array]:
        """Tokens (rows, 1) and their log-probabilities under the model (rows, 1).

        Args:
            logits: (rows, vocab).
            history: (rows, length) ids so far, for the processors.
        """
        logits = logits.astype(mx.float32)
        token = self._choose(self.scores(logits, history))[:, None]
        chosen = mx.take_along_axis(logits, token, axis=-1)
        return token, chosen - mx.logsumexp(logits, axis=-1, keepdims=True)

    def scores(self, logits: mx.array, history: mx.array) -> mx.array:
        """What is chosen by, (rows, vocab) in float32, which is recorded; arguments likewise."""
        scores = logits = logits.astype(mx.float32)
        for process in self.processors:
            scores = process(history, scores)
        if self._config.sampling:
            scores = truncate(scores, self._config)
        if self._config.renormalize_logits:
            scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        self._record.add(logits, scores)
        return scores


def make_sampler(config: GenerationConfig) -> Callable[[mx.array], mx.array]:
    """Scores (rows, vocab) -> chosen tokens (rows,): the likeliest, or samples."""
    if not config.sampling:
        return lambda scores: mx.argmax(scores, axis=-1)
    seed = config.seed
    if seed is None and threading.current_thread() is not threading.main_thread():
        # MLX's own state begins anew in each thread, and alike: all would draw the same
        seed = secrets.randbits(64)
    key = None if seed is None else mx.random.key(seed)

    def sample(scores: mx.array) -> mx.array:
        nonlocal key
        key, subkey = (None, None) if key is None else mx.random.split(key)
        return mx.random.categorical(scores, key=subkey)

    return sample


def truncate(logits: mx.array, config: GenerationConfig) -> mx.array:
    """Logits with the temperature applied and unlikely tokens at minus infinity.

    Order and meaning are those of transformers: temperature, then the `top_k` likeliest, then the
    smallest set whose probability reaches `top_p`, then those of at least `min_p` times the
    likeliest one's probability, then the most typical ones, whose probability is nearest to what
    is to be expected (https://arxiv.org/abs/2202.00666), up to `typical_p` in all. One token
    always stays.
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
    if config.typical_p is not None and config.typical_p < 1.0:
        normalized = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        probabilities = mx.exp(normalized)
        terms = mx.where(probabilities > 0, normalized * probabilities, 0.0)
        surprise = mx.abs(normalized - terms.sum(axis=-1, keepdims=True))
        order = mx.argsort(surprise, axis=-1)
        mass = mx.cumsum(mx.take_along_axis(probabilities, order, axis=-1), axis=-1)
        last = (mass < config.typical_p).sum(axis=-1, keepdims=True)
        last = mx.take_along_axis(order, mx.minimum(last, vocab_size - 1), axis=-1)
        threshold = mx.take_along_axis(surprise, last, axis=-1)
        logits = mx.where(surprise > threshold, -mx.inf, logits)
    return logits
