"""Token by token: greedy search and sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from .config import GenerationConfig
from .sampling import logits_processors, sampler

#: tokens (rows, n) -> logits after each of them (rows, n, vocab); advances the cache
Step = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class TokenStep:
    """One token of every row: its id, its log-probability under the model, and whether the row
    had already ended before it (the id is then padding)."""

    tokens: list[int]
    logprobs: list[float]
    ended: list[bool]


def search(
    logits: mx.array, step: Step, config: GenerationConfig, prompt: mx.array
) -> Iterator[TokenStep]:
    """Greedy search or sampling, until every row has ended or `max_new_tokens` are made.

    The next step is handed to the device before the last one's token is read, so that the device
    does not wait for Python.

    Args:
        logits: (rows, vocab) of the first new token.
        step: feeds one token of each row.
        prompt: (rows, length) ids, for the penalties.
    """
    processors, sample = logits_processors(config), sampler(config)
    history = prompt if processors else None

    def choose(logits: mx.array) -> tuple[mx.array, mx.array]:
        logits = logits.astype(mx.float32)
        scores = logits
        for process in processors:
            scores = process(scores, history)
        token = sample(scores)[:, None]
        chosen = mx.take_along_axis(logits, token, axis=-1)
        logprob = chosen - mx.logsumexp(logits, axis=-1, keepdims=True)
        mx.async_eval(token, logprob)
        return token, logprob

    token, logprob = choose(logits)
    ended = [False] * token.shape[0]
    for remaining in range(config.max_new_tokens - 1, -1, -1):
        current, current_logprob = token, logprob
        if remaining:
            if processors:
                history = mx.concatenate([history, token], axis=1)
            token, logprob = choose(step(token)[:, -1])
        ids = [
            config.fill_token_id if done else i
            for i, done in zip(current.flatten().tolist(), ended, strict=True)
        ]
        yield TokenStep(ids, current_logprob.flatten().tolist(), ended)
        ended = [e or i in config.eos_token_ids for e, i in zip(ended, ids, strict=True)]
        if all(ended):
            return
