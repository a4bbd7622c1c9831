"""Token by token: greedy search and sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from .config import GenerationConfig
from .sampling import LogitsProcessor, Sampler
from .stopping import StoppingCriteria

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
    logits: mx.array,
    step: Step,
    config: GenerationConfig,
    prompt: mx.array,
    *,
    stopping: StoppingCriteria | None = None,
    processors: Sequence[LogitsProcessor] = (),
) -> Iterator[TokenStep]:
    """Greedy search or sampling, until every row has ended or `max_new_tokens` are made.

    The next step is handed to the device before the last one's token is read, so that the device
    does not wait for Python.

    Args:
        logits: (rows, vocab) of the first new token.
        step: feeds one token of each row.
        prompt: (rows, length) ids, for the processors.
        stopping: what ends a row; by default the ids of `config`.
        processors: applied to the scores after those that `config` asks for.
    """
    sample = Sampler(config, processors)
    stopping = stopping or StoppingCriteria(config)
    history = prompt
    token, logprob = sample(logits, history)
    mx.async_eval(token, logprob)
    answers: list[list[int]] = [[] for _ in range(len(prompt))]
    ended = [False] * len(prompt)
    for remaining in range(config.limit - 1, -1, -1):
        current, current_logprob = token, logprob
        if remaining:
            if sample.processors:
                history = mx.concatenate([history, token], axis=1)
            token, logprob = sample(step(token)[:, -1], history)
            mx.async_eval(token, logprob)
        # read as they are: any operation on them would wait for the step that was just dispatched
        ids = [
            config.fill_token_id if done else i
            for (i,), done in zip(current.tolist(), ended, strict=True)
        ]
        yield TokenStep(ids, [value for (value,) in current_logprob.tolist()], ended)
        for answer, i in zip(answers, ids, strict=True):
            answer.append(i)
        ended = [e or stopping(answer) for e, answer in zip(ended, answers, strict=True)]
        if all(ended):
            return
