"""Beam search, with the scoring and stopping rules of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from ..layers.cache import LatestPositions
from .config import GenerationConfig
from .outputs import ScoreRecord
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

    def differing(self) -> int:
        """In how many of their latest tokens the running hypotheses differ."""
        answers = [h.tokens for h in self.running]
        first, last = min(answers), max(answers)  # in this order, all have what these two share
        pairs = enumerate(zip(first, last, strict=True))
        return next((len(first) - i for i, (one, other) in pairs if one != other), 0)

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


@dataclass(frozen=True)
class Candidates:
    """How the beams of each row may go on: (rows, candidates) on the device, by falling score.

    history: (rows * num_beams, length) ids that the beams were fed; of use to processors only.
    places: beam * vocab_size + token.
    scores: sums of log-probabilities, after all processors.
    logprobs: of the tokens, under the model.
    """

    run: DecodingInputs
    history: mx.array
    places: mx.array
    scores: mx.array
    logprobs: mx.array

    @classmethod
    def find(
        cls, run: DecodingInputs, history: mx.array, logits: mx.array, beam_scores: mx.array
    ) -> Candidates:
        """Dispatch the choice of so many that `num_beams` of each row are no end tokens.

        Args:
            logits: (rows * num_beams, vocab).
            beam_scores: (rows, num_beams).
        """
        config, vocab_size = run.config, logits.shape[-1]
        num_rows, num_beams = beam_scores.shape
        count = min(max(2, 1 + len(config.eos_token_ids)) * num_beams, num_beams * vocab_size)
        logits = logits.astype(mx.float32)
        scores = logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for process in run.processors:
            scores = process(history, scores)
        if config.renormalize_logits:
            scores = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
        if run.record is not None:
            run.record.add(logits, scores)
        scores = (scores + beam_scores.reshape(-1, 1)).reshape(num_rows, -1)
        places = mx.argpartition(-scores, count - 1, axis=-1)[:, :count]
        order = mx.argsort(-mx.take_along_axis(scores, places, axis=-1), axis=-1)
        places = mx.take_along_axis(places, order, axis=-1).astype(mx.int32)
        scores = mx.take_along_axis(scores, places, axis=-1)
        logprobs = mx.take_along_axis(logprobs.reshape(num_rows, -1), places, axis=-1)
        mx.async_eval(places, scores, logprobs)
        return cls(run, history, places, scores, logprobs)

    def expected(self, done: Sequence[bool]) -> tuple[mx.array, mx.array]:
        """Places and scores, (rows, num_beams), of the candidates that go on unless more than end
        tokens ends some; of rows that are done, each beam stays where it is."""
        config, vocab_size = self.run.config, self.run.logits.shape[-1]
        count, end_tokens = self.places.shape[1], mx.array(config.eos_token_ids, mx.int32)
        ends = mx.any(self.places[..., None] % vocab_size == end_tokens, axis=-1)
        order = mx.argsort(ends * count + mx.arange(count), axis=-1)[:, : config.num_beams]
        places, scores = (mx.take_along_axis(a, order, axis=-1) for a in (self.places, self.scores))
        in_place = mx.arange(config.num_beams) * vocab_size
        places = mx.where(mx.array(done)[:, None], in_place, places)
        mx.async_eval(places)
        return places, scores

    def feed(self, latest: LatestPositions, places: mx.array, scores: mx.array) -> Candidates:
        """Dispatch the next step after some of these, (rows, num_beams)."""
        num_rows, num_beams = places.shape
        beams, tokens = mx.divmod(places, self.run.logits.shape[-1])
        source = (mx.arange(num_rows)[:, None] * num_beams + beams).flatten()
        tokens = tokens.reshape(-1, 1)
        latest.reorder(source)
        history = self.history
        if self.run.processors:
            history = mx.concatenate([history[source], tokens], axis=1)
        return Candidates.find(self.run, history, self.run.step(tokens)[:, -1], scores)


def beam_search(run: DecodingInputs) -> list[Hypothesis]:
    """The `num_return_sequences` best answers of each row, one after the other; the cache is
    reordered as beams are dropped and split.

    As in `search`, the next step is handed to the device before the last candidates are read. It
    feeds those that are expected to go on; where a stop string or a caller's criterion ended one of
    them, the step is done over with those that do. What a row is fed once it is done means nothing.
    """
    config, record = run.config, run.record or ScoreRecord()
    num_rows, vocab_size = run.logits.shape
    num_beams = config.num_beams
    start = [Hypothesis(0.0, [], [])] * num_beams
    rows = [Beams(config, _ended(run, number), start) for number in range(num_rows)]
    source = mx.repeat(mx.arange(num_rows), num_beams)
    for layer in run.cache:
        layer.reorder(source)
    # all beams of a row start equal, so only the first may be continued
    scores = mx.array([[0.0, *[-1e9] * (num_beams - 1)]] * num_rows)
    candidates = Candidates.find(run, run.history[source], run.logits[source], scores)
    for remaining in reversed(range(config.limit)):
        if remaining:
            expected, scores = candidates.expected([row.done for row in rows])
            differing = max(row.differing() for row in rows if not row.done)
            latest = LatestPositions(run.cache, differing)
            following = candidates.feed(latest, expected, scores)
        # read as they are: any operation on them would wait for the step that was just dispatched
        arrays = (candidates.places, candidates.scores, candidates.logprobs)
        best = [a.tolist() for a in arrays]
        chosen: list[list[int]] = []
        for number, (row, *found) in enumerate(zip(rows, *best, strict=True)):
            beams, first = list(range(num_beams)), number * num_beams
            if not row.done:
                before = row.running
                hypotheses = [
                    (beam, before[beam].extended(total, token, logprob, first + beam))
                    for place, total, logprob in zip(*found, strict=True)
                    for beam, token in [divmod(place, vocab_size)]
                ]
                beams = row.advance(hypotheses) or beams
            tokens = [0] * num_beams if row.done else [h.tokens[-1] for h in row.running]
            pairs = zip(beams, tokens, strict=True)
            chosen.append([beam * vocab_size + token for beam, token in pairs])
        if all(row.done for row in rows):
            break
        compared = zip(rows, chosen, expected.tolist(), strict=True)
        if any(not row.done and own != guessed for row, own, guessed in compared):
            record.forget(1)
            scores = mx.array([[h.score for h in row.running] for row in rows])
            following = candidates.feed(latest, mx.array(chosen), scores)
        candidates = following
    if remaining:
        # the search was a step ahead
        record.forget(1)
        latest.reorder(mx.arange(num_rows * num_beams))
    return [h for row in rows for h in row.finished[: config.num_return_sequences]]


def _ended(run: DecodingInputs, number: int) -> Callable[[Sequence[Sequence[int]]], list[bool]]:
    """What tells which of several answers to one prompt have ended."""
    prompt = run.history[number]

    def ended(answers: Sequence[Sequence[int]]) -> list[bool]:
        prompts = mx.broadcast_to(prompt, (len(answers), *prompt.shape))
        return run.stopping.ended(answers, prompts, run.record)

    return ended
