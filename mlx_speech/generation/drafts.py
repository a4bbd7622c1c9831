"""Where proposals for the next tokens come from."""

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from .protocols import GenerativeModel, LayerCache
from .sampling import Sampler

#: tokens of the answer by which the place in a draft is found again
LONGEST_SUFFIX = 4


class DraftSource(Protocol):
    """What proposes the next tokens of one answer.

    goes_on: whether more is known behind the latest proposals.
    """

    @property
    def goes_on(self) -> bool: ...

    def propose(self, answer: Sequence[int], most: int) -> mx.array:
        """Ids (n,) that may come after an answer, at most `most`."""
        ...

    def accept(self, count: int) -> None:
        """The first so many of the latest proposals were right."""
        ...


class TextDraft:
    """Proposes what comes next in a draft of the whole answer, such as a CTC head's text.

    Behind a correction the place is found again where the answer's latest tokens, as many as
    possible and `LONGEST_SUFFIX` at most, stand in the draft: next after what was right so far, or
    else last before. Where not even the latest one does, it is taken to stand in place of the
    draft's.

    Args:
        ids: the draft, without an end.
    """

    def __init__(self, ids: Sequence[int]):
        self._ids = list(ids)
        self._right = 0  # how much of it is behind
        self._start = self._end = 0  # of the latest proposals

    @property
    def goes_on(self) -> bool:
        return self._end < len(self._ids)

    def propose(self, answer: Sequence[int], most: int) -> mx.array:
        self._start = self._place(answer)
        self._end = self._start + most
        return mx.array(self._ids[self._start : self._end], mx.int32)

    def accept(self, count: int) -> None:
        if count:
            self._right = self._start + count

    def _place(self, answer: Sequence[int]) -> int:
        for size in range(min(LONGEST_SUFFIX, len(answer)), 0, -1):
            suffix = list(answer[-size:])
            places = range(size, len(self._ids) + 1)
            ends = [end for end in places if self._ids[end - size : end] == suffix]
            if ends:
                return next((end for end in ends if end >= self._right), ends[-1])
        return self._right + min(1, len(answer))


class ModelDraft:
    """A smaller model with the same vocabulary, which proposes token by token, one prompt's.

    Args:
        logits: (1, vocab) of the first token after the prompt.
        cache: the model's, with the prompt in it.
        history: (1, length) ids of the prompt, for the processors.
    """

    goes_on = False

    def __init__(
        self,
        model: GenerativeModel,
        logits: mx.array,
        cache: Sequence[LayerCache],
        history: mx.array,
        sample: Sampler,
    ):
        self._model, self._logits, self._cache = model, logits, cache
        self._history, self._sample = history, sample
        self._prompt_length = cache[0].length
        self._proposed = 0

    def propose(self, answer: Sequence[int], most: int) -> mx.array:
        history = mx.concatenate([self._history, mx.array([answer], mx.int32)], axis=1)
        logits = self._logits
        if unseen := answer[self._cache[0].length - self._prompt_length :]:
            logits = self._model.step(mx.array([unseen]), self._cache)[:, -1]
        drafts: list[mx.array] = []
        for number in range(most):
            if number:
                logits = self._model.step(drafts[-1], self._cache)[:, -1]
            context = mx.concatenate([history, *drafts], axis=1)
            drafts.append(self._sample(logits, context)[0])
        self._proposed = most
        return mx.concatenate(drafts, axis=1)[0]

    def accept(self, count: int) -> None:
        # of the proposals, it has not been fed the last one
        for layer in self._cache:
            layer.trim(max(0, self._proposed - 1 - count))
