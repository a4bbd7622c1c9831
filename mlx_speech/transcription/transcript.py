"""What a transcription gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ..generation.speculative import DraftStatistics


@dataclass
class Word:
    """One word and when it was said, in seconds.

    probability: of the word under the decoder, the product of its tokens'; without the decoder
        (`ctc_only`), under the CTC head, the product of its labels'.
    """

    text: str
    start: float
    end: float
    probability: float


@dataclass
class Segment:
    """A stretch of the recording and what was said in it; times in seconds.

    start, end: of the speech, as far as the pauses around it can be told.
    tokens: ids of the text, without the one that ended it; with those of a stop string.
    avg_logprob: mean log-probability of the tokens, the ending one included; without the decoder,
        of the CTC head's labels, 0 if there are none.
    words: if they were asked for.
    truncated: the text was cut off by the limit on tokens, or where it repeated itself.
    retried: the first attempt repeated itself, and this is another.
    drafts: what its draft was good for, if it had one.
    speaker: number of who says it, where speakers were asked for, counted from 1 in the order in
        which they begin; None where the model names nobody. The segment is one turn of theirs, or
        part of one: `tokens` are with the tag that began it.
    remarks: what was irregular about the tags of speakers or times that the model wrote.
    logprobs: log-probability of each of the tokens; none where a CTC head wrote letters instead.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    avg_logprob: float
    words: list[Word] = field(default_factory=list)
    truncated: bool = False
    retried: bool = False
    drafts: DraftStatistics | None = field(default=None, repr=False, compare=False)
    speaker: int | None = None
    remarks: list[str] = field(default_factory=list, repr=False, compare=False)
    logprobs: list[float] = field(default_factory=list, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        from ..generation.speculative import DraftStatistics

        words, drafts = [Word(**word) for word in data["words"]], data["drafts"]
        drafts = None if drafts is None else DraftStatistics(**drafts)
        return cls(**{**data, "words": words, "drafts": drafts})


@dataclass
class Transcript:
    """What was said in a recording of `duration` seconds; times in seconds.

    text: of all segments, whoever speaks.

    language: code of the text's, if it was asked for; the models do not say which they detected.
    regions: start and end of each speech region, without pauses inside segments; None: unknown.
    remarks: what to know of how it was read and why there is no text, without the recording's name.
    audio_track: number of the audio track that was read, from 1.
    """

    text: str
    language: str | None
    duration: float
    segments: list[Segment]
    regions: list[tuple[float, float]] | None = field(default=None, repr=False, compare=False)
    remarks: list[str] = field(default_factory=list, compare=False)
    audio_track: int = field(default=1, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it; `from_dict` is the inverse. The writers' JSON is another."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        segments, regions = map(Segment.from_dict, data["segments"]), data["regions"]
        regions = None if regions is None else [(start, end) for start, end in regions]
        return cls(**{**data, "segments": list(segments), "regions": regions})

    @property
    def drafts(self) -> DraftStatistics | None:
        """What the drafts of all segments were good for, if they had some."""
        known = [segment.drafts for segment in self.segments if segment.drafts is not None]
        return sum(known[1:], known[0]) if known else None


@dataclass
class TranscriptionDelta:
    """A piece of a transcript.

    text: what was added to the text.
    segment: the whole segment, with its last piece.
    speaker: see `Segment`.
    """

    text: str
    segment: Segment | None = None
    speaker: int | None = None
