"""Chunks whose drafts are checked together, of one recording or of several."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from ..generation.api import Prefilled
from ..generation.protocols import Detokenizes
from ..generation.repetition import find_loop
from ..generation.speculative import Answer, Speculation
from ..generation.streaming import AnswerText
from .chunks import AudioChunk
from .transcript import Segment


class DraftingDecoder(Protocol):
    """What makes texts of chunks, see `SegmentDecoder`."""

    @property
    def tokenizer(self) -> Detokenizes: ...

    def begin(self, chunks: Sequence[AudioChunk]) -> "list[DraftedRow]":
        """Feed the prompts of chunks and check the first of their drafts."""
        ...

    def segment(
        self, chunk: AudioChunk, run: Prefilled, tokens: list[int], logprobs: list[float]
    ) -> Segment:
        """What an answer says, the token that ended it included."""
        ...


class Trimmed:
    """Pieces of a text without the white space at its end, which may be before a stop string."""

    def __init__(self) -> None:
        self._held = ""

    def add(self, text: str) -> str:
        """What is certain with this, all but white space at its end."""
        whole = self._held + text
        piece = whole.rstrip()
        self._held = whole[len(piece) :] if piece else whole
        return piece


@dataclass(eq=False)
class DraftedRow:
    """A chunk and the answer that is made of it."""

    decoder: DraftingDecoder
    chunk: AudioChunk
    run: Prefilled
    answer: Answer
    _pieces: AnswerText | None = field(default=None, init=False)
    _trimmed: Trimmed = field(default_factory=Trimmed, init=False)
    _given: int = field(default=0, init=False)

    @property
    def ended(self) -> bool:
        """Whether nothing is to be added to the answer."""
        return self.answer.ended

    def segment(self) -> Segment:
        """What the answer says."""
        answer = self.answer
        segment = self.decoder.segment(self.chunk, self.run, answer.tokens, answer.logprobs)
        segment.drafts = answer.statistics
        return segment

    def text(self) -> str:
        """What has become certain of the text since the last call. It cannot be taken back: who
        calls this has an answer that ends where it is noticed to run into a loop."""
        answer, text = self.answer, ""
        self._pieces = self._pieces or AnswerText(self.run.config, self.decoder.tokenizer)
        while self._given < len(answer.tokens):
            self._given += 1
            if find_loop(answer.tokens[: self._given]) is not None:
                answer.shorten(self._given)
            last = answer.ended and self._given == len(answer.tokens)
            text += self._pieces.add(answer.tokens[self._given - 1], last)
        return self._trimmed.add(text)


class DraftedBatch:
    """Rows that are decoded together, each as far as its draft is right. Those that end make room
    for the next, several of which begin together: a prompt alone costs more than its share, and so
    does waiting until all have ended.

    Args:
        size: rows at most. Their decoders may be several, of one model with the same options: the
            prompts may differ.
    """

    def __init__(self, size: int):
        self._size = size
        self._running: Speculation | None = None

    @property
    def _active(self) -> int:
        return 0 if self._running is None else len(self._running.answers)

    @property
    def is_empty(self) -> bool:
        """Whether no row is decoded."""
        return not self._active

    @property
    def room(self) -> int:
        """How many chunks are to begin now, if there are so many."""
        return self._size - self._active if 2 * self._active <= self._size else 0

    def begin(self, decoder: DraftingDecoder, chunks: Sequence[AudioChunk]) -> list[DraftedRow]:
        """Take in further rows, whose first pass this is; all of those that ended in it are taken
        out by `take_ended`."""
        rows = decoder.begin(chunks)
        begun = cast(Speculation, rows[0].run.speculation)
        if self._running is None:
            self._running = begun
        else:
            self._running.extend(begun)
        return rows

    def advance(self) -> None:
        """One pass of the model: each row gets a token or more."""
        if self._running is not None:
            self._running.advance()

    def take_ended(self) -> None:
        """Give up the places of rows that have ended."""
        if self._running is not None:
            self._running.take_ended()

    @staticmethod
    def drop(rows: Collection[DraftedRow]) -> None:
        """End the answers of some rows, whatever they lack."""
        for row in rows:
            row.answer.stopped = True
