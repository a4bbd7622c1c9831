"""Tokens -> text, and text that appears as soon as it is certain."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from .api import Prefilled
from .config import GenerationConfig
from .protocols import Detokenizes
from .stopping import StopStringFilter


class StreamingDetokenizer:
    """Turns tokens, one by one, into pieces of text that are never taken back.

    A piece comes out once its characters are complete: one that spans several tokens appears with
    its last token, white space with what follows it. All pieces together are exactly
    `tokenizer.decode(ids, skip_special_tokens=True).strip()`.

    Tokens decoded alone lack what their neighbours do to them (a leading space that only the first
    one loses, characters cut in two), and decoding everything anew at each token is quadratic. So
    each step decodes a short window: the tokens of the last piece, as context, and the new ones.

    Args:
        tokenizer: anything with `decode(ids, skip_special_tokens=True)`. Where a later token can
            change the text of earlier ones, beyond a cut character's U+FFFD, it also has
            `is_open(id)`: true for the tokens after which that can happen, so that their text waits
            for one that ends it.
    """

    def __init__(self, tokenizer: Detokenizes):
        self._decode = partial(tokenizer.decode, skip_special_tokens=True)
        self._is_open = getattr(tokenizer, "is_open", lambda token: False)
        self._ids: list[int] = []
        # the window begins at `_context`; in it, what comes before `_new` is out and reads `_known`
        self._context = self._new = 0
        self._known = ""
        self.text = ""
        #: after the end, what stood behind the text
        self.white_space = ""

    def add(self, token: int) -> str:
        """The text that `token` makes certain, often empty."""
        self._ids.append(token)
        if self._is_open(token):
            return ""
        piece = self._decode(self._ids[self._context :])[len(self._known) :]
        if piece.endswith("\ufffd") or not piece.strip():
            return ""
        piece = piece.rstrip() if self.text else piece.strip()
        self._context, self._new = self._new, len(self._ids)
        self._known = self._decode(self._ids[self._context :]).rstrip()
        self.text += piece
        return piece

    def finish(self) -> str:
        """What was still held back, once there are no more tokens."""
        decoded = self._decode(self._ids).lstrip()
        whole = decoded.rstrip()
        self.white_space = decoded[len(whole) :]
        if not whole.startswith(self.text):
            raise AssertionError(f"streamed {self.text!r}, but the text is {whole!r}")
        rest, self.text = whole[len(self.text) :], whole
        return rest


@dataclass(frozen=True)
class TextStep:
    """One token of an answer that comes as text.

    text: what it made certain, often empty.
    token, logprob: its id and log-probability under the model.
    finish_reason: of the last one: `"stop"` (an end was chosen) or `"length"` (it was cut off).
    """

    text: str
    token: int
    logprob: float
    finish_reason: Literal["stop", "length"] | None = None


class AnswerText:
    """The text of an answer, piece by piece, as its tokens come; it ends before a stop string.

    Args:
        config: of the run that they come from.
    """

    def __init__(self, config: GenerationConfig, tokenizer: Detokenizes):
        self._end_ids = config.eos_token_ids
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._stop_filter = StopStringFilter(config.stop_texts)

    def add(self, token: int, last: bool) -> str:
        """The text that a token makes certain; `last`: no more follow it."""
        detokenizer, stop_filter = self._detokenizer, self._stop_filter
        text = stop_filter.add("" if token in self._end_ids else detokenizer.add(token))
        if last:
            text += stop_filter.finish(detokenizer.finish() + detokenizer.white_space)
        return text


def stream_text(
    run: Prefilled,
    tokenizer: Detokenizes,
    cut_off: Callable[[Sequence[int]], bool] = lambda tokens: False,
) -> Iterator[TextStep]:
    """The answer to one prompt, token by token; it ends before a stop string.

    Args:
        cut_off: whether to end after these tokens, though nothing says so.
    """
    pieces = AnswerText(run.config, tokenizer)
    tokens: list[int] = []
    for step in run.steps():
        (token,), (logprob,), (stopped,) = step.tokens, step.logprobs, step.stopped
        tokens.append(token)
        last = stopped or len(tokens) == run.config.limit or cut_off(tokens)
        reason: Literal["stop", "length"] = "stop" if stopped else "length"
        yield TextStep(pieces.add(token, last), token, logprob, reason if last else None)
        if last:
            return


def answer_text(run: Prefilled, tokens: Sequence[int], tokenizer: Detokenizes) -> str:
    """The text of a whole answer, as `stream_text` gives it in pieces."""
    ended = tokens[-1] in run.config.eos_token_ids
    kept = tokens[:-1] if ended else tokens
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return StopStringFilter(run.config.stop_texts).finish(text.lstrip())
