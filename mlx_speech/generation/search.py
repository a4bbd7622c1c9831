"""Token by token: greedy search and sampling."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from .config import GenerationConfig
from .outputs import ScoreRecord
from .processors import LogitsProcessor
from .protocols import LayerCache, Step
from .sampling import Sampler
from .stopping import StoppingCriteria


@dataclass(frozen=True)
class TokenStep:
    """One token of every row: its id, its log-probability under the model, whether the row had
    already ended before it (the id is then padding), and whether it has by now."""

    tokens: list[int]
    logprobs: list[float]
    ended: list[bool]
    stopped: list[bool]


@dataclass(frozen=True)
class DecodingInputs:
    """A prompt that was fed, and all that a strategy needs to go on.

    history: (rows, length) ids of the prompt, for processors and criteria.
    logits: (rows, vocab) of the first new token.
    step: feeds further tokens of each row.
    cache: what was fed is in it.
    stopping: what ends a row.
    processors: applied to the scores of the next token (`logits_processors`).
    record: keeps the scores of each step.
    """

    config: GenerationConfig
    history: mx.array
    logits: mx.array
    step: Step
    cache: Sequence[LayerCache]
    stopping: StoppingCriteria
    processors: Sequence[LogitsProcessor] = ()
    record: ScoreRecord | None = None


def search(run: DecodingInputs) -> Iterator[TokenStep]:
    """Greedy search or sampling, until every row has ended or `max_new_tokens` are made.

    The next step is handed to the device before the last one's token is read, so that the device
    does not wait for Python.
    """
    config, history = run.config, run.history
    sample = Sampler(config, run.processors, run.record)
    token, logprob = sample(run.logits, history)
    mx.async_eval(token, logprob)
    answers: list[list[int]] = [[] for _ in range(len(history))]
    ended = [False] * len(history)
    for remaining in reversed(range(config.limit)):
        current, current_logprob = token, logprob
        if remaining:
            if sample.processors:
                history = mx.concatenate([history, token], axis=1)
            token, logprob = sample(run.step(token)[:, -1], history)
            mx.async_eval(token, logprob)
        # read as they are: any operation on them would wait for the step that was just dispatched
        chosen = zip(current.tolist(), ended, strict=True)
        ids = [config.fill_token_id if done else i for (i,), done in chosen]
        for answer, i in zip(answers, ids, strict=True):
            answer.append(i)
        ends = run.stopping.ended(answers, run.history, run.record)
        stopped = [before or now for before, now in zip(ended, ends, strict=True)]
        logprobs = [value for (value,) in current_logprob.tolist()]
        yield TokenStep(ids, logprobs, ended, stopped)
        ended = stopped
        if all(ended):
            return
