"""From chunks to segments where the model marks its answers with tags."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, cast

from ..generation.api import Prefilled
from ..processing.request import Tags
from .alignment import span_probabilities, token_spans
from .chunks import AudioChunk
from .family import Decoded
from .segment_decoder import SegmentDecoder, seconds_in_context
from .tags import parse_words, settled
from .transcript import Segment, TranscriptionDelta, Word


@dataclass
class TaggedAnswer(Segment):
    """What the model wrote about a chunk, tags included."""

    def segment(self, **changes: Any) -> Segment:
        """The segment that it stands for, or one that it is a part of."""
        return Segment(**{f.name: getattr(self, f.name) for f in fields(Segment)} | changes)


@dataclass
class TagDecoder(SegmentDecoder, ABC):
    """Makes segments of answers with tags; beside `SegmentDecoder`, whose texts have none."""

    tags: ClassVar[Tags | None]
    longest_seconds: ClassVar[float]  #: of audio that the model was made for, answered like this
    tokens_per_second: ClassVar[int]  #: that such answers take

    def __post_init__(self):
        aligned = self.how.word_timestamps in (True, "ctc")
        request = replace(self.how.request, tags=self.tags)
        self.how = replace(self.how, request=request, word_timestamps=aligned)
        super().__post_init__()
        held = seconds_in_context(self.model, self.tokens_per_second)
        self.longest_chunk = min(self.longest_seconds, held)

    @abstractmethod
    def _read(self, chunk: AudioChunk, answer: TaggedAnswer) -> list[Segment]:
        """The segments that an answer stands for."""

    @abstractmethod
    def _clean(self, answer: str) -> tuple[str, int | None]:
        """What the beginning of an answer says, as the first segment will, and who says it."""

    def decode(self, chunks: Iterable[AudioChunk], batch_size: int) -> Iterator[Decoded]:
        """See `SegmentDecoder`."""
        for decoded in super().decode(chunks, batch_size):
            yield [(chunk, self._read(chunk, cast(TaggedAnswer, a))) for chunk, (a,) in decoded]

    def stream(
        self, chunk: AudioChunk, gap: str
    ) -> Generator[TranscriptionDelta, None, list[Segment]]:
        """See `SegmentDecoder`. Texts come without tags, and what may become one is waited for;
        those of further segments of a chunk come at its end, when their times are known."""
        written = said = ""
        segments: list[Segment] = []
        for delta in super().stream(chunk, ""):
            written += delta.text
            if delta.segment is not None:
                segments = self._read(chunk, cast(TaggedAnswer, delta.segment))
                break
            text, speaker = self._clean(settled(written))
            if piece := text[len(said) :]:
                yield TranscriptionDelta(gap + piece, speaker=speaker)
                said, gap = text, ""
        for segment in segments:
            piece = segment.text[len(said) :]
            yield TranscriptionDelta(gap + piece if piece else "", segment, segment.speaker)
            gap = " " if segment.text else gap
            said = ""
        return segments

    def segment(
        self, chunk: AudioChunk, run: Prefilled, tokens: list[int], logprobs: list[float]
    ) -> TaggedAnswer:
        return TaggedAnswer(**vars(super().segment(chunk, run, tokens, logprobs)))


@dataclass
class TimeTagDecoder(TagDecoder):
    """Makes segments whose words have the times that the model itself tells."""

    tags = "times"
    longest_seconds = 210.0
    tokens_per_second = 16  # tags are written digit by digit
    verbosity = 3

    def _read(self, chunk: AudioChunk, answer: TaggedAnswer) -> list[Segment]:
        words, remarks = parse_words(answer.text, chunk.duration)
        places = token_spans(answer.text, answer.tokens, self.tokenizer)
        sure = span_probabilities([word.span for word in words], places, answer.logprobs)
        told = [
            Word(word.text, chunk.begin + word.start, chunk.begin + word.end, probability)
            for word, probability in zip(words, sure, strict=True)
        ]
        text = " ".join(word.text for word in words)
        return [answer.segment(text=text, words=told, remarks=remarks)]

    def _clean(self, answer: str) -> tuple[str, int | None]:
        words, _ = parse_words(answer, 0.0)
        return " ".join(word.text for word in words), None
