"""From chunks to turns of speakers, who keep their numbers over a recording of any length.

A model numbers speakers in the order of their first turns. So each chunk is decoded as what
follows the chunks of its window (`WindowDecoder`), and the next window begins with a few seconds of
each speaker so far, and with what is said there.
"""

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, cast

import mlx.core as mx

from ..errors import UnsupportedOptionError
from ..processing.granite_speech import GraniteSpeechProcessor
from .alignment import span_probabilities, split_words, token_spans
from .chunks import AudioChunk
from .frames import FRAMES_PER_SECOND
from .segment_decoder import AUDIO_TOKENS_PER_SECOND
from .tag_decoder import TaggedAnswer, TimeTagDecoder
from .tags import Turn, named_speakers, parse_turns
from .transcript import Segment
from .windows import WindowDecoder, joined

REFERENCE_SECONDS = 3.0  #: of each speaker at the beginning of a window
#: of the context, at most, for the audio of all; their words take less
REFERENCES_SHARE = 1 / 8


class _Reference(NamedTuple):
    """How a speaker sounds: `size` windows of projected audio, and what is said in them."""

    audio: mx.array
    text: str
    size: int


@dataclass
class SpeakerDecoder(WindowDecoder):
    """Makes a segment of each turn of a speaker, whose times are those of its words.

    Where words are to have the times that the model itself tells, each chunk is decoded once more
    for them, since an answer has tags of one kind.

    Raises:
        UnsupportedOptionError: there is no CTC head whose labels are known, which times need.
    """

    tags = "speakers"

    def __post_init__(self):
        self._times: TimeTagDecoder | None = None
        if self.how.word_timestamps == "tags":
            parts = self.model, self.processor, self.family
            self._times = TimeTagDecoder(*parts, replace(self.how, speakers=False))
        super().__post_init__()
        if self._times is not None:
            self.longest_chunk = min(self.longest_chunk, self._times.longest_chunk)
        if self.family.ctc_vocabulary is None:
            message = "{speakers} needs an encoder with a CTC head whose labels are known"
            raise UnsupportedOptionError.about(message)
        self.vocabulary = self.family.ctc_vocabulary
        extractor = cast(GraniteSpeechProcessor, self.processor).audio_processor
        #: projected audio is made of windows of so many seconds, and so many tokens
        self._window_seconds = extractor.projector_window_size / FRAMES_PER_SECOND
        self._window_tokens = extractor.projector_window_size // extractor.projector_downsample_rate
        named = named_speakers(self._window.text)
        self._met = set(named)
        self._speaking = named[-1] if named else None
        self._references: dict[int, _Reference] = {}
        self._remarks: list[str] = []

    def _begin_window(self) -> None:
        """Speakers are introduced again, in the order of their numbers; where there are too many,
        those who spoke last."""
        window = self._window
        room = self.model.context_length * REFERENCES_SHARE
        most = max(1, int(room / (REFERENCE_SECONDS * AUDIO_TOKENS_PER_SECOND)))
        introduced = dict(sorted(list(self._references.items())[-most:]))
        for speaker, reference in introduced.items():
            window.audio.append(reference.audio)
            window.text = joined(window.text, f"[Speaker {speaker}]: {reference.text}")
            window.seconds += reference.size * self._window_seconds
            self._speaking = speaker
        if lost := sorted(self._met - introduced.keys()):
            numbers = ", ".join(map(str, lost))
            self._remarks.append(f"no reference of speaker {numbers}, who may be numbered anew")

    def _read(self, chunk: AudioChunk, answer: TaggedAnswer) -> list[Segment]:
        known = max(self._met, default=0)
        turns, remarks = parse_turns(answer.text, self._speaking, known)
        remarks, self._remarks = self._remarks + remarks, []
        segments = self._turns(chunk, answer, turns)
        self._keep(chunk, " ".join(_tagged(turn) for turn in turns))
        for turn, segment in zip(turns, segments, strict=False):
            if turn.speaker is not None:
                self._speaking = turn.speaker
                self._met.add(turn.speaker)
                self._remember(chunk, segment)
        segments[0].remarks = remarks
        if self._times is not None and turns:
            self._merge(chunk, segments, self._times)
        elif not self.how.word_timestamps:
            for segment in segments:
                segment.words = []
        return segments

    def _turns(
        self, chunk: AudioChunk, answer: TaggedAnswer, turns: Sequence[Turn]
    ) -> list[Segment]:
        """A segment for each turn, with its words; one without text where there are none."""
        if not turns:
            return [answer.segment(text="")]
        places = token_spans(answer.text, answer.tokens, self.tokenizer)
        spans = [
            [(turn.span[0] + a, turn.span[0] + b) for a, b in split_words(turn.text)]
            for turn in turns
        ]
        every = [span for part in spans for span in part]
        whole = answer.segment(text=" ".join(turn.text for turn in turns))
        self._tell_words(chunk, whole, span_probabilities(every, places, answer.logprobs))
        words = iter(whole.words)
        # the tokens of a turn are those up to the next one's tag
        starts = places[:, 0].searchsorted([turn.start for turn in turns[1:]]).tolist()
        bounds = pairwise([0, *starts, len(places)])
        segments = []
        for turn, part, (first, last) in zip(turns, spans, bounds, strict=True):
            own = [next(words) for _ in part]
            logprobs = answer.logprobs[first:last]
            segment = answer.segment(
                start=own[0].start,
                end=own[-1].end,
                text=turn.text,
                tokens=answer.tokens[first:last],
                avg_logprob=sum(logprobs) / max(1, len(logprobs)),
                logprobs=logprobs,
                words=own,
                truncated=answer.truncated and turn is turns[-1],
                speaker=turn.speaker,
            )
            segments.append(segment)
        return segments

    def _merge(self, chunk: AudioChunk, segments: Sequence[Segment], times: TimeTagDecoder) -> None:
        """Give each segment the words that the model's own times put into it."""
        ((_, (told,)),) = next(times.decode([chunk], 1))
        segments[0].remarks += told.remarks
        if told.truncated:
            segments[0].remarks.append("the answer with the times of words is cut off")
        for segment in segments:
            segment.words = []
        edges = [(before.end + after.start) / 2 for before, after in pairwise(segments)]
        for word in told.words:
            segments[bisect(edges, (word.start + word.end) / 2)].words.append(word)

    def _remember(self, chunk: AudioChunk, segment: Segment) -> None:
        """Keep how a speaker sounds, where this is more than is kept: windows that are whole within
        the turn, and what is said in them."""
        speaker = cast(int, segment.speaker)
        size = self._window_seconds
        first = math.ceil((segment.start - chunk.begin) / size)
        last = math.floor((segment.end - chunk.begin) / size)
        last = min(last, first + round(REFERENCE_SECONDS / size))
        kept = self._references.pop(speaker, None)
        begin, end = (chunk.begin + size * index for index in (first, last))
        said = [word.text for word in segment.words if begin <= (word.start + word.end) / 2 < end]
        if said and (kept is None or last - first > kept.size):
            rows = slice(first * self._window_tokens, last * self._window_tokens)
            audio = cast(mx.array, chunk.audio)[rows]
            kept = _Reference(audio, " ".join(said), last - first)
        if kept is not None:
            self._references[speaker] = kept  # behind those who spoke before

    def _clean(self, answer: str) -> tuple[str, int | None]:
        turns, _ = parse_turns(answer, self._speaking)
        return (turns[0].text, turns[0].speaker) if turns else ("", None)


def _tagged(turn: Turn) -> str:
    """A turn as the model is to have written it; one that goes on has no tag."""
    goes_on = turn.speaker is None or turn.start == turn.span[0]
    return turn.text if goes_on else f"[Speaker {turn.speaker}]: {turn.text}"
