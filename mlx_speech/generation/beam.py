"""Beam search, with the scoring and stopping rules of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from ..layers.cache import reorder_latest
from .config import GenerationConfig
from .search import DecodingInputs


@dataclass
class Hypothesis:
    """An answer, or the beginning of one: its score and its tokens with their log-probabilities,
    and in a search the beam, of all prompts' beams, that each token was found in."""

    score: float
    tokens: list[int]
    logprobs: list[float]
    beams: list[int] = field(default_factory=list)

    def extended(self, score: float, token: int, logprob: float, beam: int) -> Hypothesis:
        """This and one token more."""
        beams = [*self.beams, beam]
        return Hypothesis(score, [*self.tokens, token], [*self.logprobs, logprob], beams)


@dataclass
class Beams:
    """The hypotheses of one row of the batch: those still growing and the best complete ones."""

    config: GenerationConfig
    ended: Callable[[Sequence[Sequence[int]]], list[bool]]  #: see `StoppingCriteria.ended`
    running: list[Hypothesis]
    finished: list[Hypothesis] = field(default_factory=list)
    done: bool = False

    def advance(self, candidates: Sequence[tuple[int, Hypothesis]]) -> list[int]:
        """Take the next tokens.

        Args:
            candidates: (beam it continues, hypothesis) by falling score; scores are sums of
                log-probabilities. Enough of them that `num_beams` do not end.

        Returns:
            Which beam each of the new running hypotheses continues.
        """
        config = self.config
        length = len(candidates[0][1].tokens)
        at_limit = length == config.limit
        ends = [at_limit or end for end in self.ended([h.tokens for _, h in candidates])]
        # those that end count only among the first `num_beams`; the rest are there to go on from
        for (_, hypothesis), end in zip(candidates[: config.num_beams], ends, strict=False):
            if end:
                score = float(np.float32(hypothesis.score) / length**config.length_penalty)
                self.finished.append(replace(hypothesis, score=score))
        # a stable sort: of equal scores the earlier one stays first
        self.finished.sort(key=lambda h: -h.score)
        del self.finished[config.num_beams :]
        going_on = [c for c, end in zip(candidates, ends, strict=True) if not end]
        if not going_on:
            self.done = True
            return []
        # stop strings can end more than expected: hopeless ones then keep the number of beams
        for beam, ended in candidates[: max(0, config.num_beams - len(going_on))]:
            going_on.append((beam, replace(ended, score=-1e9)))
        going_on = going_on[: config.num_beams]
        self.running = [h for _, h in going_on]
        self.done = self._cannot_improve(length)
        return [beam for beam, _ in going_on]

    def _cannot_improve(self, length: int) -> bool:
        config = self.config
        if len(self.finished) < config.num_beams:
            return False
        if config.early_stopping is True:
            return True
        if config.early_stopping == "never" and config.length_penalty > 0:
            length = config.limit
        best_possible = self.running[0].score / length**config.length_penalty
        return best_possible <= self.finished[-1].score


def beam_search(run: DecodingInputs) -> list[Hypothesis]:
    """The `num_return_sequences` best answers of each row, one after the other; the cache is
    reordered as beams are dropped and split."""
    config = run.config
    num_rows, vocab_size = run.logits.shape
    num_beams = config.num_beams
    num_candidates = min(max(2, 1 + len(config.eos_token_ids)) * num_beams, num_beams * vocab_size)
    start = [Hypothesis(0.0, [], [])] * num_beams
    rows = [Beams(config, _ended(run, number), start) for number in range(num_rows)]
    # all beams of a row start equal, so only the first may be continued
    beam_scores = np.full((num_rows, num_beams), -1e9, np.float32)
    beam_scores[:, 0] = 0.0
    source = mx.repeat(mx.arange(num_rows), num_beams)
    for layer in run.cache:
        layer.reorder(source)
    logits, history = run.logits[source], run.history[source]

    while True:
        logits = logits.astype(mx.float32)
        scores = logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for process in run.processors:
            scores = process(history, scores)
        if config.renormalize_logits:
            scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        if run.record is not None:
            run.record.add(logits, scores)
        scores = (scores + mx.array(beam_scores.reshape(-1, 1))).reshape(num_rows, -1)
        index = mx.argpartition(-scores, num_candidates - 1, axis=-1)[:, :num_candidates]
        top_scores = mx.take_along_axis(scores, index, axis=-1)
        order = mx.argsort(-top_scores, axis=-1)
        index = mx.take_along_axis(index, order, axis=-1)
        top_scores = mx.take_along_axis(top_scores, order, axis=-1)
        top_logprobs = mx.take_along_axis(logprobs.reshape(num_rows, -1), index, axis=-1)
        mx.eval(index, top_scores, top_logprobs)

        best = [a.tolist() for a in (index, top_scores, top_logprobs)]
        parents: list[int] = []
        tokens: list[int] = []
        latest = 0
        for number, (row, *found) in enumerate(zip(rows, *best, strict=True)):
            beams, first = list(range(num_beams)), number * num_beams
            if not row.done:
                before = row.running
                candidates = [
                    (beam, before[beam].extended(total, token, logprob, first + beam))
                    for i, total, logprob in zip(*found, strict=True)
                    for beam, token in [divmod(i, vocab_size)]
                ]
                beams = row.advance(candidates) or beams
                latest = max(latest, *map(_differing, before, row.running))
                beam_scores[number] = [h.score for h in row.running]
            parents += [first + beam for beam in beams]
            # what a row is fed after it is done does not matter
            tokens += [0] * num_beams if row.done else [h.tokens[-1] for h in row.running]
        if all(row.done for row in rows):
            return [h for row in rows for h in row.finished[: config.num_return_sequences]]
        next_tokens = mx.array(tokens)[:, None]
        source = mx.array(parents)
        if latest:
            reorder_latest(run.cache, source, latest)
        if run.processors:
            history = mx.concatenate([history[source], next_tokens], axis=1)
        logits = run.step(next_tokens)[:, -1]


def _ended(run: DecodingInputs, number: int) -> Callable[[Sequence[Sequence[int]]], list[bool]]:
    """What tells which of several answers to one prompt have ended."""
    prompt = run.history[number]

    def ended(answers: Sequence[Sequence[int]]) -> list[bool]:
        prompts = mx.broadcast_to(prompt, (len(answers), *prompt.shape))
        return run.stopping.ended(answers, prompts, run.record)

    return ended


def _differing(before: Hypothesis, after: Hypothesis) -> int:
    """How many of the latest tokens of `before` are other ones in `after`."""
    pairs = enumerate(zip(before.tokens, after.tokens, strict=False))
    same = next((i for i, (old, new) in pairs if old != new), len(before.tokens))
    return len(before.tokens) - same
