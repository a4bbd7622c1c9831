"""A recording that is transcribed while others are, chunk by chunk."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

from ..transcription.chunks import AudioChunk
from ..transcription.family import ChunkDecoder
from ..transcription.pipeline import Job, with_text
from ..transcription.segment_decoder import SegmentDecoder
from ..transcription.transcript import Segment, Transcript, TranscriptionDelta

Event = TranscriptionDelta | Transcript  #: the last one of a recording is its transcript


class Outlet(Protocol):
    """Where the events of a request go."""

    @property
    def closed(self) -> bool:
        """Whether nobody waits for them any more."""
        ...

    def put(self, event: Event) -> None: ...

    def end(self) -> None:
        """No more events come."""
        ...

    def fail(self, error: Exception) -> None:
        """Likewise, and this is why."""
        ...


class RecordingTask:
    """A recording whose chunks come one by one, and whose texts come back in any order.

    Args:
        streaming: texts go out as they become certain, not only with their segments.
    """

    def __init__(self, job: Job, outlet: Outlet, streaming: bool):
        self.outlet, self.streaming = outlet, streaming
        self.ended = False
        self._tracks = job.tracks()
        self._transcripts: list[Transcript] = []
        self._begin(next(self._tracks))

    def _begin(self, track: Job) -> None:
        self._track, self._chunks = track, track.parts
        self._taken, self._exhausted = 0, False
        self._segments: list[Segment] = []
        self._texts: dict[int, str] = {}  # of chunks that are not whole yet: what is not out
        self._whole: dict[int, tuple[AudioChunk, list[Segment]]] = {}
        self._next = 0  # the chunk whose text goes out
        self._said = ""  # of it

    @property
    def decoder(self) -> ChunkDecoder:
        """What makes texts of its chunks."""
        return self._track.decoder

    @property
    def drafting(self) -> SegmentDecoder:
        """The same, where its chunks bring drafts."""
        return cast(SegmentDecoder, self._track.decoder)

    @property
    def exhausted(self) -> bool:
        """Whether there are no more chunks to take now."""
        return self._exhausted

    def take(self) -> tuple[int, AudioChunk] | None:
        """Go through the next part of it; the chunk that was found and encoded, and its number, if
        there is one."""
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._exhausted = True
            self._go_on()
            return None
        if chunk is None:
            return None
        self._taken += 1
        return self._taken - 1, chunk

    def add(self, number: int, text: str) -> None:
        """A piece of the text of a chunk that has become certain."""
        self._texts[number] = self._texts.get(number, "") + text
        self._go_on()

    def finish(self, number: int, chunk: AudioChunk, segments: list[Segment]) -> None:
        """The whole of what was said in a chunk."""
        self._whole[number] = chunk, segments
        self._go_on()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around what is done for this recording alone: what fails ends it, and no other."""
        try:
            yield
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End it, and tell why."""
        if not self.ended:
            self.outlet.fail(error)
            self.close()

    def close(self) -> None:
        """Let go of the recording."""
        self.ended = True
        self._chunks.close()
        self._track.recording.close()

    def _go_on(self) -> None:
        """Give out what is next, in order."""
        while self._next < self._taken:
            self._say(self._texts.pop(self._next, ""))
            if self._next not in self._whole:
                return
            chunk, segments = self._whole.pop(self._next)
            self._track.finish([chunk])
            for segment in segments:
                self._say(segment.text[len(self._said) :])
                self._segments.append(segment)
                self.outlet.put(TranscriptionDelta("", segment, segment.speaker))
                self._said = ""
            self._next += 1
        if self._exhausted and not self.ended:
            self._end_track()

    def _say(self, text: str) -> None:
        if text:
            before = any(segment.text for segment in self._segments)
            gap = " " if before and not self._said else ""
            self._said += text
            self.outlet.put(TranscriptionDelta(gap + text))

    def _end_track(self) -> None:
        self._transcripts.append(self._track.transcript(self._segments))
        self._track.recording.close()
        following = None if self._transcripts[-1].text else next(self._tracks, None)
        if following is not None:
            self._begin(following)
            return
        self.ended = True
        self.outlet.put(with_text(self._transcripts))
        self.outlet.end()
