"""Speculative decoding (https://arxiv.org/abs/2211.17192), the greedy form, of several rows.

A draft proposes the next tokens of each row; the model checks them all in one pass and keeps those
that it would have chosen itself, and its own choice after them. The answers are those that greedy
search gives, in fewer passes. Rows that accept different numbers of tokens go on independently: the
cache holds rows of different lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from .config import GenerationConfig
from .drafts import DraftSource
from .outputs import ScoreRecord
from .protocols import GenerativeModel
from .sampling import Sampler
from .search import TokenStep
from .stopping import StoppingCriteria

#: Tokens of a row that are fed at once, its latest one included: with the prompt, whose pass is the
#: dearest and the most even, then where rows are few, and where they are many, which is a kernel of
#: attention that costs for 8 queries what it does for one (see `attention.py`)
FED_WITH_PROMPT = 32
FED_TOKENS = 16
FEW_ROWS = 2
FED_TOKENS_OF_MANY_ROWS = 8
#: two scores are as good as equal that differ by so many units in the last place of their type:
#: those of several tokens at once are rounded otherwise than those of one
TIE_ULPS = 4


@dataclass
class DraftStatistics:
    """What drafts were good for.

    drafted: tokens that were proposed.
    accepted: those of them that were kept.
    passes: of the model, over each row; that of the prompt counts.
    tokens: of the answers.
    """

    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    tokens: int = 0

    def __add__(self, other: DraftStatistics) -> DraftStatistics:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return DraftStatistics(*(a + b for a, b in pairs))


@dataclass(eq=False)
class Answer:
    """One row.

    prompt: (1, length) ids.
    limit: on the number of its tokens.
    sample: changes the scores of its next token, and keeps them in `record`.
    stopped: whether it came to an end of its own.
    """

    prompt: mx.array
    draft: DraftSource
    limit: int
    sample: Sampler
    record: ScoreRecord | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False
    statistics: DraftStatistics = field(default_factory=DraftStatistics)

    @property
    def ended(self) -> bool:
        """Whether nothing is to be added."""
        return self.stopped or len(self.tokens) == self.limit

    def shorten(self, limit: int) -> None:
        """Set a lower limit, after the first pass."""
        self.limit = limit
        if len(self.tokens) > limit:
            self.stopped = False
            del self.tokens[limit:], self.logprobs[limit:]
            self.statistics.tokens = limit
            self.statistics.accepted = min(limit, self.statistics.accepted)

    def propose(self, most: int) -> mx.array:
        """Ids (n,) to check, no more than there is room for before the model's own choice."""
        most = min(most, self.limit - len(self.tokens) - 1)
        if self.stopped or most <= 0:
            return mx.zeros(0, mx.int32)
        return self.draft.propose(self.tokens, most)


class Speculation:
    """Rows that are decoded together, each as far as its draft is right.

    Args:
        cache: of the rows; neither padded nor of a bounded size.
    """

    def __init__(
        self,
        model: GenerativeModel,
        cache: list,
        config: GenerationConfig,
        stopping: StoppingCriteria,
        answers: Sequence[Answer],
    ):
        self.cache, self.answers = cache, list(answers)
        self._model, self._config, self._stopping = model, config, stopping

    def start(self, prefill: Callable[..., mx.array], held: int = 0) -> mx.array:
        """Feed the prompts, and check the first proposals in the same pass.

        Args:
            prefill: the model's, which fills the cache.
            held: positions of the prompt that the cache holds already.

        Returns:
            Logits after each prompt, (rows, vocab).
        """
        proposals, counts, most = self._propose(FED_WITH_PROMPT)
        prompts = [answer.prompt[0] for answer in self.answers]
        ends = [len(prompt) - held for prompt in prompts]
        whole = max(ends) + most
        fill = self._config.fill_token_id
        rows = [
            mx.pad(mx.concatenate([p[held:], d]), (0, whole - end - most), constant_values=fill)
            for p, d, end in zip(prompts, proposals, ends, strict=True)
        ]
        kept = [[end - 1 + i for i in range(most + 1)] for end in ends]
        logits = prefill(mx.stack(rows), logits_to_keep=kept)
        latest = mx.stack([prompt[-1:] for prompt in prompts])
        fed = mx.concatenate([latest, mx.stack(proposals)], axis=1)
        self._verify([held + end - 1 for end in ends], counts, fed, logits, sure=1)
        first = mx.contiguous(logits[:, 0])
        mx.async_eval(first)  # or it would hold on to all of them
        return first

    def advance(self) -> None:
        """One pass of the model: each row that has not ended gets a token or more."""
        few = len(self.answers) <= FEW_ROWS
        proposals, counts, _ = self._propose(FED_TOKENS if few else FED_TOKENS_OF_MANY_ROWS)
        latest = mx.array([answer.tokens[-1:] for answer in self.answers])
        fed = mx.concatenate([latest, mx.stack(proposals)], axis=1)
        before = self.cache[0].row_lengths
        self._verify(before, counts, fed, self._model.step(fed, self.cache))

    def take_ended(self) -> list[Answer]:
        """The answers that have ended, which leave the batch."""
        ended = [answer for answer in self.answers if answer.ended]
        rest = [row for row, answer in enumerate(self.answers) if not answer.ended]
        if ended and rest:
            for layer in self.cache:
                layer.reorder(mx.array(rest))
        self.answers = [self.answers[row] for row in rest]
        return ended

    def extend(self, other: Speculation) -> None:
        """Take in the rows of another batch of the same model."""
        if self.answers:
            for own, more in zip(self.cache, other.cache, strict=True):
                own.extend(more)
        else:
            self.cache[:] = other.cache
        other.cache.clear()
        self.answers += other.answers

    def steps(self) -> Iterator[TokenStep]:
        """The tokens of all rows as `search` gives them, as soon as all have theirs."""
        given = 0
        prompt_length = self.cache[0].length - len(self.answers[0].tokens) + 1
        try:
            while True:
                lengths = [len(a.tokens) for a in self.answers if not a.ended]
                ready = min(lengths, default=max(len(a.tokens) for a in self.answers))
                while given < ready:
                    given += 1
                    yield self._token_step(given)
                if not lengths:
                    return
                self.advance()
        finally:
            # what nobody has seen of the only row
            if len(self.answers) == 1:
                for layer in self.cache:
                    layer.trim(max(0, layer.length - prompt_length - given))

    def _token_step(self, count: int) -> TokenStep:
        """The token that makes answers `count` tokens long."""
        step = TokenStep([], [], [], [])
        for answer in self.answers:
            over = len(answer.tokens) < count
            step.tokens.append(self._config.fill_token_id if over else answer.tokens[count - 1])
            step.logprobs.append(0.0 if over else answer.logprobs[count - 1])
            step.ended.append(over)
            step.stopped.append(over or (answer.stopped and len(answer.tokens) == count))
        return step

    def _propose(self, fed: int) -> tuple[list[mx.array], list[int], int]:
        """Proposals of each row, filled up to the same number; how many there are of each, and that
        number.

        Args:
            fed: how many tokens a row is fed where the configuration does not say.
        """
        most = self._config.num_draft_tokens or fed - 1
        proposals = [answer.propose(most) for answer in self.answers]
        counts = [len(proposed) for proposed in proposals]
        most = max(counts)
        fill = self._config.fill_token_id
        filled = [
            mx.pad(p, (0, most - n), constant_values=fill)
            for p, n in zip(proposals, counts, strict=True)
        ]
        return filled, counts, most

    def _verify(
        self, before: list[int], counts: list[int], fed: mx.array, logits: mx.array, sure: int = 0
    ) -> None:
        """Keep of each row's proposals what the model would have chosen itself, and its own choice
        after them; forget the rest.

        Args:
            before: positions of each row in the cache before the first that was fed.
            counts: how many proposals each row has.
            fed: (rows, 1 + n) the latest token of each row, and its proposals.
            logits: (rows, 1 + n, vocab) after each of these.
            sure: after how many of them the choice is taken as it is: greedy search makes it in a
                pass like this.
        """
        proposed, acceptance = fed[:, 1:], self._config.draft_acceptance
        scores = self._scores(logits, fed, counts)
        chosen = mx.argmax(scores, axis=-1)
        of_chosen, of_proposed = _logprobs(logits, chosen, proposed)
        agrees = proposed == chosen[:, :-1]
        if acceptance is None:
            ties = _nearly_tied(scores, chosen, logits)
            if fed.size == 1:
                sure = 1  # this is how greedy search feeds it
        else:
            ties = mx.zeros(chosen.shape, mx.bool_)
            (likely,) = _logprobs(scores / self._model.logits_temperature, proposed)
            agrees = agrees | (likely >= math.log(acceptance))
        columns = proposed, agrees, of_proposed, chosen, of_chosen, ties
        mx.eval(columns)
        surplus = self.cache[0].row_lengths
        for row, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            surplus[row] -= before[row]
            if not self.answers[row].ended:
                ids = fed[row : row + 1]
                surplus[row] -= self._keep(row, before[row], counts[row], ids, sure, *values)
        for layer in self.cache:
            layer.trim_rows(surplus)

    def _keep(
        self,
        row: int,
        before: int,
        count: int,
        fed: mx.array,
        sure: int,
        proposed: list[int],
        agrees: list[bool],
        of_proposed: list[float],
        chosen: list[int],
        of_chosen: list[float],
        ties: list[bool],
    ) -> int:
        """Add what is right to one row's answer; returns how many tokens that are. What is not
        described is as in `_verify`.

        Args:
            agrees: whether each proposal is to be kept.
            of_proposed, of_chosen: log-probabilities of the proposals and the model's own choices.
            ties: whether these nearly tie with another.
        """
        answer, passes = self.answers[row], 1
        found: list[tuple[int, float]] = []
        for place in range(count + 1):
            choice = chosen[place], of_chosen[place]
            kept = place < count and agrees[place]
            if place >= sure and ties[place]:
                passes += 1
                choice = self._alone(row, before + place, fed[:, : place + 1])
                kept = place < count and choice[0] == proposed[place]
            elif kept:
                choice = proposed[place], of_proposed[place]
            found.append(choice)
            if not kept:
                break
        lenient = self._config.draft_acceptance is not None
        if lenient and 0 < count == place and answer.draft.goes_on:
            found.pop()  # the draft's next token may be likely enough
        taken = self._take(answer, found)
        if answer.record is not None:
            answer.record.forget(count + 1 - taken)
        accepted = min(place, taken)
        if count:
            answer.draft.accept(accepted)
        answer.statistics += DraftStatistics(count, accepted, passes, taken)
        return taken

    def _take(self, answer: Answer, found: list[tuple[int, float]]) -> int:
        """Add tokens and their log-probabilities up to the end of the answer; returns how many."""
        before = len(answer.tokens)
        for token, logprob in found:
            answer.tokens.append(token)
            answer.logprobs.append(logprob)
            (answer.stopped,) = self._stopping.ended([answer.tokens], answer.prompt, answer.record)
            if answer.ended:
                break
        return len(answer.tokens) - before

    def _alone(self, row: int, length: int, fed: mx.array) -> tuple[int, float]:
        """What greedy search would choose, and its log-probability, decided by feeding one token
        of one row.

        Args:
            length: positions before it.
            fed: (1, n) as in `_verify`; it is the last of these.
        """
        cache = [layer.row(row, length) for layer in self.cache]
        logits = self._model.step(fed[:, -1:], cache)[:, -1]
        answer = self.answers[row]
        token, logprob = Sampler(self._config, answer.sample.processors)(
            logits, self._history(answer, fed)
        )
        return token.item(), logprob.item()

    def _scores(self, logits: mx.array, fed: mx.array, counts: list[int]) -> mx.array:
        """Logits with all that changes them, each row's for itself: (rows, n, vocab). What is
        behind a row's proposals, or its end, is left as it is."""
        if not any(a.sample.processors or a.record is not None for a in self.answers):
            return logits
        rows = []
        for row, (answer, count) in enumerate(zip(self.answers, counts, strict=True)):
            checked = 0 if answer.ended else count + 1
            scores = [
                answer.sample.scores(
                    logits[row, i : i + 1], self._history(answer, fed[row : row + 1, : i + 1])
                )
                for i in range(checked)
            ]
            rows.append(mx.concatenate([*scores, logits[row, checked:].astype(mx.float32)]))
        return mx.stack(rows)

    @staticmethod
    def _history(answer: Answer, fed: mx.array) -> mx.array:
        """(1, length) all tokens of an answer and its prompt, with some that were fed: the first of
        these is the latest of those."""
        tokens = mx.array([answer.tokens], answer.prompt.dtype)
        return mx.concatenate(
            [answer.prompt, tokens, fed[:, 1:].astype(answer.prompt.dtype)], axis=1
        )


def _logprobs(logits: mx.array, *columns: mx.array) -> list[mx.array]:
    """Log-probabilities of tokens, in float32.

    Args:
        logits: (rows, n, vocab).
        columns: ids (rows, n or fewer), of the first positions.
    """
    logits = logits.astype(mx.float32)
    total = mx.logsumexp(logits, axis=-1)
    return [_taken(logits[:, : ids.shape[1]], ids) - total[:, : ids.shape[1]] for ids in columns]


def _taken(values: mx.array, ids: mx.array) -> mx.array:
    """(rows, n, vocab), (rows, n) -> (rows, n)."""
    return mx.take_along_axis(values, ids[..., None], axis=-1)[..., 0]


def _nearly_tied(scores: mx.array, chosen: mx.array, logits: mx.array) -> mx.array:
    """Where another score is as good as the chosen one's: (rows, n, vocab), (rows, n) -> (rows, n).

    Args:
        logits: from which they were made, in the type in which they were computed.
    """
    margin = TIE_ULPS * mx.finfo(logits.dtype).eps * mx.abs(_taken(logits, chosen))
    least = _taken(scores, chosen).astype(mx.float32) - margin.astype(mx.float32)
    return mx.sum(scores.astype(mx.float32) >= least[..., None], axis=-1) > 1
