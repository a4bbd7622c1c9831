"""When an answer has ended."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..layers.token_ids import as_mlx
from .config import GenerationConfig
from .outputs import ScoreRecord, Scores
from .protocols import Detokenizes

#: (ids so far (rows, length), scores of each step or None) -> whether each row, or all, has ended
Criterion = Callable[[mx.array, Scores | None], Any]


class StoppingCriteria:
    """Tells of an answer's tokens whether the last one ended it: by its id, or because it
    completed a stop string.

    Args:
        others: a caller's own criteria, which only `ended` asks.

    Raises:
        InputError: there are stop strings, but no tokenizer to look for them with.
    """

    def __init__(
        self,
        config: GenerationConfig,
        tokenizer: Detokenizes | None = None,
        others: Sequence[Criterion] = (),
    ):
        self._eos = frozenset(config.eos_token_ids)
        self._strings = config.stop_texts
        if self._strings and tokenizer is None:
            raise InputError("stop_strings need the tokenizer as well: generate(tokenizer=…)")
        if not isinstance(tokenizer, Detokenizes | None):
            raise InputError.must_be("tokenizer", tokenizer, "what decodes the model's tokens")
        self._tokenizer = tokenizer
        # a token stands for a byte at least, unless it is a special one
        self._window = max((len(s.encode()) for s in self._strings), default=0) + 8
        self._others = [*others]
        if config.max_time is not None:
            end = time.monotonic() + config.max_time
            self._others.append(lambda ids, scores: time.monotonic() > end)

    def __call__(self, tokens: Sequence[int]) -> bool:
        if tokens[-1] in self._eos:
            return True
        if self._tokenizer is None or not self._strings:
            return False
        text = self._tokenizer.decode(tokens[-self._window :], skip_special_tokens=True)
        return any(string in text for string in self._strings)

    def ended(
        self, answers: Sequence[Sequence[int]], prompts: mx.array, record: ScoreRecord | None
    ) -> list[bool]:
        """Of answers of the same length, one for each prompt (rows, length), which have ended, by
        the caller's criteria too.

        Raises:
            InputError: a criterion returned something else.
        """
        ends = [self(answer) for answer in answers]
        if self._others:
            ids = mx.concatenate([prompts, mx.array(answers, prompts.dtype)], axis=1)
            scores = None
            if record is not None and record.scores is not None:
                scores = tuple(record.scores[: len(answers[0])])
            for criterion in self._others:
                found: Any = as_mlx(criterion(ids, scores))
                found = mx.array(found) if isinstance(found, bool) else found
                if not isinstance(found, mx.array) or found.size not in (1, len(ends)):
                    rule = f"true or false, or an array of these, one for each of {len(ends)} rows"
                    raise InputError.must_be("what a stopping criterion returned", found, rule)
                told = mx.broadcast_to(found.flatten() != 0, (len(ends),)).tolist()
                ends = [end or said for end, said in zip(ends, told, strict=True)]
        return ends


class StopStringFilter:
    """Lets pieces of text through up to the first of some strings, which may span pieces."""

    def __init__(self, strings: Sequence[str]):
        self._strings = strings
        self._held = ""
        self.reached = False  #: whether one of the strings has come

    def add(self, piece: str) -> str:
        """What of the text so far is certain to come before the string."""
        if self.reached:
            return ""
        text = self._held + piece
        found = [start for string in self._strings if (start := text.find(string)) >= 0]
        if found:
            self.reached, self._held = True, ""
            return text[: min(found)]
        # what may be the beginning of one waits
        starts = (i for i in range(len(text)) if any(s.startswith(text[i:]) for s in self._strings))
        certain = next(starts, len(text))
        self._held = text[certain:]
        return text[:certain]

    def finish(self, rest: str = "") -> str:
        """What was held back, and what of the last text comes before the string; white space at
        the very end is left out, but may complete a string."""
        text = self.add(rest)
        return text if self.reached else (text + self._held).rstrip()
