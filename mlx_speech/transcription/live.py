"""Transcription of audio that is still coming in: text at once, which the decoder then corrects.

Every 0.16 s of audio (`HOP_SAMPLES`) is looked at as soon as it is there: Silero VAD tells whether
somebody speaks, and while somebody does, the encoder's CTC head writes what is said. A pause ends
the segment, which is decoded as the pipeline decodes a chunk. What comes out depends on the audio
alone, not on how it is divided into pushes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import mlx.core as mx
import numpy as np

from ..audio.live import RecentSamples, SampleStream
from ..distributed.memory import clear_cache
from ..errors import InputError
from ..fields import Range, fitted
from ..models.silero_vad import WINDOW_SAMPLES
from ..processing.request import TranscriptionRequest
from .chunks import ChunkOptions
from .family import WordTimes
from .frames import FRAME_SAMPLES, FRAMES_PER_SECOND
from .live_turn import LiveText, LiveTurn
from .live_vad import LiveVAD
from .pipeline import DEFAULT_MODEL
from .preparation import Model, prepare_decoding
from .segmenter import MARGIN_FRAMES, Span
from .transcript import Segment
from .vad import LATE_FRAMES, VAD_THRESHOLD

HOP_SAMPLES = 5 * WINDOW_SAMPLES  #: samples that are looked at together, 0.16 s
#: seconds of audio before speech was detected that go with it
PREFIX_SECONDS = MARGIN_FRAMES / FRAMES_PER_SECOND

LiveEventKind = Literal["started", "partial", "committed", "stopped", "corrected"]


@dataclass(frozen=True)
class LiveEvent:
    """Something that became known of a segment.

    kind: `"started"`: somebody speaks; `"committed"`: text that changes no more until it is
        corrected; `"partial"`: what comes after it, as far as that can be told; `"stopped"`: the
        segment has ended; `"corrected"`: what the decoder writes in place of all its text.
    segment_id: number of the segment, from 0; of all its events.
    time: what it is about, in seconds of the audio: where speech begins or ends, else how far the
        audio was looked at.
    text: committed: what is added to the text that is certain; partial: all that comes after that,
        in place of the last one; corrected: the text of the whole segment.
    segment: with `"corrected"`: the segment.
    """

    kind: LiveEventKind
    segment_id: int
    time: float
    text: str = ""
    segment: Segment | None = None


class LiveTranscriber:
    """Transcribes audio while it is coming in, for hours in memory that does not grow.

    Segments are stretches of speech; what is silence or noise gives no event. Their texts while
    they go on are the CTC head's, of what was said, without punctuation where that head writes
    none; the decoder's are what was asked for.

    Args:
        model: as for `transcribe`: a folder or repository id, or what `load` returned.
        sampling_rate: of the samples that come, in Hz.
        language, task, target_language, punctuate, prompt, keywords: as for `transcribe`.
        word_timestamps: as for `transcribe`, of corrected segments.
        chunk_duration: after so many seconds of speech without a pause that ends it a segment is
            cut, in the longest pause that there is.
        min_silence: shortest pause that ends a segment, in seconds.
        vad_threshold: the probability of speech at which it begins.
        prefix_padding: so many seconds before speech was detected go with it.
        turn_detection: without it no pause ends a segment; `commit` does.
        draft, ctc_only, skip_editor, options: as for `transcribe`.

    Attributes:
        language: code of the text's, if one was asked for.

    Raises:
        AudioError: the sampling rate is impossible.
        CheckpointError: the model cannot be loaded.
        InputError: the arguments contradict each other.
        UnsupportedOptionError: the model was not trained for what is asked, or has no CTC head for
            live text.
    """

    def __init__(
        self,
        model: Model = DEFAULT_MODEL,
        *,
        sampling_rate: float = 16000,
        language: str | None = None,
        task: str = "transcribe",
        target_language: str | None = None,
        punctuate: bool = False,
        prompt: str | None = None,
        keywords: Sequence[str] | None = None,
        word_timestamps: bool | WordTimes = False,
        chunk_duration: float = 20.0,
        min_silence: float = 0.5,
        vad_threshold: float = VAD_THRESHOLD,
        prefix_padding: float = PREFIX_SECONDS,
        turn_detection: bool = True,
        draft: bool = True,
        ctc_only: bool = False,
        skip_editor: bool = False,
        **options: Any,
    ):
        cuts = ChunkOptions(chunk_duration, min_silence, vad_threshold=vad_threshold)
        prefix = fitted("prefix_padding", prefix_padding, Annotated[float, Range(0, 5)])
        self._prefix_frames = round(prefix * FRAMES_PER_SECOND)
        self._turn_detection = fitted("turn_detection", turn_detection, bool)
        self._stream = SampleStream(sampling_rate)
        request = TranscriptionRequest(task, language, target_language, punctuate, prompt, keywords)
        how: dict[str, Any] = {"word_timestamps": word_timestamps, "draft": draft}
        how |= {"ctc_only": ctc_only, "skip_editor": skip_editor}
        prepared = prepare_decoding(model, request, options, **how)
        self.language = prepared.language
        self._decoder, self._chunk_parts = prepared.decoder, prepared.chunk_parts
        self._encoder = prepared.family.live_encoder()
        self._longest = min(cuts.chunk_duration, self._decoder.longest_chunk)
        self._min_silence = round(cuts.min_silence * FRAMES_PER_SECOND)
        self._vad = LiveVAD(cuts.vad_threshold)
        self._samples = RecentSamples()
        self._pending = np.zeros(0, np.float32)  # samples that were not looked at yet
        self._turn: LiveTurn | None = None
        self._free = 0  # the first frame that is in no segment
        self._segments = 0
        self._ended = False

    @property
    def duration(self) -> float:
        """Seconds of audio that have come, as far as they were looked at."""
        return self._samples.duration

    def push(self, samples: np.ndarray | mx.array) -> list[LiveEvent]:
        """Take in the next samples, (n,), of any number and the types that `load_audio` takes.

        Returns:
            What became known with them.

        Raises:
            AudioError: they are no audio.
            ContextLengthError: a segment is too long for the model.
            InputError: the audio has ended.
        """
        if self._ended:
            raise InputError("the audio has ended: use a new LiveTranscriber for other audio")
        self._pending = np.concatenate([self._pending, self._stream.push(samples)])
        return [event for hop in self._take(HOP_SAMPLES) for event in self._look_at(hop)]

    def commit(self) -> list[LiveEvent]:
        """End the open segment now; returns its last events, none where nobody speaks."""
        events = [event for hop in self._take(WINDOW_SAMPLES) for event in self._look_at(hop)]
        return events + self._close()

    def clear(self) -> None:
        """Forget the audio that is in no segment that has ended; its events end without another."""
        self._wait_from(-(-(self._samples.size + self._pending.size) // FRAME_SAMPLES))

    def finish(self) -> list[LiveEvent]:
        """The audio ends here; returns the last events."""
        if self._ended:
            return []
        self._ended = True
        self._pending = np.concatenate([self._pending, self._stream.finish()])
        events = [event for hop in self._take(HOP_SAMPLES) for event in self._look_at(hop)]
        rest, self._pending = self._pending, np.zeros(0, np.float32)
        return events + self._look_at(rest, ended=True) + self._close()

    def _take(self, size: int) -> Iterator[np.ndarray]:
        """Whole parts of so many samples that were not looked at yet."""
        while self._pending.size >= size:
            part, self._pending = self._pending[:size], self._pending[size:]
            yield part

    def _look_at(self, samples: np.ndarray, *, ended: bool = False) -> list[LiveEvent]:
        """The next samples, of whole windows of Silero VAD unless they are the last."""
        self._samples.append(samples)
        self._vad.push(samples)
        if self._turn is None:
            self._begin()
        self._encoder.advance(self._samples, ended=ended)
        events: list[LiveEvent] = []
        if (turn := self._turn) is not None:
            for span in turn.advance():
                events += self._end(turn, span)
            events += self._written(turn)
            over = self._turn_detection or not self._text.sure or turn.seconds >= self._longest
            if over and turn.silence >= self._min_silence:
                events += self._close()
        self._forget()
        return events

    def _begin(self) -> None:
        """Open a segment where somebody has begun to speak."""
        onset = self._vad.onset(self._free)
        if onset is None:
            return
        stride, window = self._encoder.stride, self._encoder.span_frames
        earliest = -(-self._free // stride) * stride
        first = max(earliest, (onset - self._prefix_frames) // window * window)
        self._turn = LiveTurn(self._encoder, self._vad, first, onset, self._longest)
        self._text = LiveText(self._encoder)

    def _written(self, turn: LiveTurn, end: int | None = None) -> list[LiveEvent]:
        """What the CTC head has written meanwhile; the segment begins with that.

        Args:
            end: where it ends, if it does.
        """
        text, now = self._text, self._encoder.end
        added = text.advance(end)
        if not text.sure:
            return []
        events = []
        if text.segment_id is None:
            text.segment_id, self._segments = self._segments, self._segments + 1
            events.append(_event("started", text.segment_id, turn.onset))
        if added:
            events.append(_event("committed", text.segment_id, now, added))
            text.shown = ""
        if text.partial != text.shown:
            events.append(_event("partial", text.segment_id, now, text.partial))
            text.shown = text.partial
        return events

    def _end(self, turn: LiveTurn, span: Span) -> list[LiveEvent]:
        """End the open segment; another one begins behind it."""
        events, number, chunk = self._written(turn, span.end), self._text.segment_id, None
        if number is not None:
            chunk = self._encoder.chunk(span, self._samples, **self._chunk_parts)
        turn.cut(span)
        self._text = LiveText(self._encoder)
        if number is None or chunk is None:
            return events
        events.append(_event("stopped", number, span.last))
        (decoded,) = self._decoder.decode([chunk], 1)
        ((_, (segment,)),) = decoded
        corrected = _event("corrected", number, span.last, segment.text)
        return [*events, replace(corrected, segment=segment)]

    def _close(self) -> list[LiveEvent]:
        """End the open segment, if there is one, and wait for speech."""
        if (turn := self._turn) is None:
            return []
        self._encoder.settle(self._samples)
        try:
            return [event for span in turn.finish() for event in self._end(turn, span)]
        finally:
            self._wait_from(turn.first)

    def _wait_from(self, first: int) -> None:
        """Wait for speech in the frames from one on."""
        self._turn, self._free = None, first
        self._encoder.stop()
        clear_cache()

    def _forget(self) -> None:
        """Let go of what nothing that comes can need."""
        if self._turn is not None:
            first = self._turn.first
        else:
            first = self._vad.earliest_onset(self._free) - self._prefix_frames
            first -= self._encoder.span_frames
        first = max(0, first)
        self._vad.forget(first - LATE_FRAMES)
        self._samples.forget(self._encoder.needed_samples(first))


def _event(kind: LiveEventKind, number: int, frame: int, text: str = "") -> LiveEvent:
    return LiveEvent(kind, number, frame / FRAMES_PER_SECOND, text)
