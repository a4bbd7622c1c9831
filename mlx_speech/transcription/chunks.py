"""From a recording to chunks that are ready to be decoded, in memory that does not grow with it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Annotated, Protocol, Self

import mlx.core as mx
import numpy as np

from ..audio import SAMPLING_RATE, Recording
from ..fields import Range, fit_fields
from .ctc_text import CTCText
from .frames import FRAME_SAMPLES, FRAMES_PER_SECOND
from .parts import WHOLE, Halo, OwnSpeech, Part
from .segmenter import Segmenter, Span
from .vad import REACH_FRAMES, SILENCE_DBFS, VAD_THRESHOLD, RecordingVAD, SpeechActivity, widened

#: speech sets in and fades out too faintly to stand out: up to these frames of it are missed.
#: Times of segments are given with them; pauses are taken as they are detected, longer than they
#: are by as much, so that none that must end a segment is missed
ONSET_PADDING_FRAMES = 9
RELEASE_PADDING_FRAMES = 6
BatchSize = Annotated[int, Range(1)]  #: segments that are decoded together
#: a recording of fewer has no whole window of any family's features (25 ms): there is no speech
SHORTEST_SAMPLES = 400
#: of what has no encoder, half a minute of which is read at a time
VAD_HALO = Halo(push_frames=1500)


@dataclass(frozen=True)
class ChunkOptions:
    """How a recording is cut.

    chunk_duration: the longest segment, in seconds; no more than the model takes.
    min_silence: shortest pause that ends a segment, in seconds (see `Segmenter` for very short
        speech); no less than the model's window is.
    vad: leave out what is no speech; else all is taken for speech.
    vad_threshold: the probability of speech at which it begins.

    Raises:
        InputError: one of them makes no sense.
    """

    chunk_duration: Annotated[float, Range(1)] = 30.0
    min_silence: Annotated[float, Range(0.1)] = 1.0
    vad: bool = True
    vad_threshold: Annotated[float, Range(0, 1)] = VAD_THRESHOLD

    def __post_init__(self):
        fit_fields(self)

    def segmenter(self, window: int, first: int = 0) -> Segmenter:
        """One for encoder frames from the `first` on, whose cuts are at multiples of `window`."""
        longest = max(int(self.chunk_duration * FRAMES_PER_SECOND), window)
        pause = round(self.min_silence * FRAMES_PER_SECOND)
        return Segmenter(window=window, max_frames=longest, min_silence=pause, first=first)


class Samples(Protocol):
    """Samples of a recording, or of audio that is still coming in."""

    @property
    def duration(self) -> float:
        """Seconds."""
        ...

    def read(self, start: int, end: int) -> mx.array:
        """The samples that `[start:end]` gives of an array: (n,), float32."""
        ...


@dataclass(frozen=True)
class AudioChunk:
    """A part of a recording that is ready to be decoded; times in seconds of the recording.

    start, end: of the speech in it.
    begin, duration: of what the model is given.
    audio: what the decoder is given, as its family wants it; None where no decoder is.
    regions: start and end of each speech region in it.
    ctc_logits: (frames, labels) of the CTC head from `start` to `end`, where word times are wanted.
    levels_db: (frames,) loudness, likewise.
    draft: what the encoder's CTC head wrote, where that is wanted and can be had.
    section: only those of one section of the recording are decoded together, see `parts.py`.
    """

    start: float
    end: float
    begin: float
    duration: float
    audio: mx.array | None
    regions: list[tuple[float, float]]
    ctc_logits: mx.array | None = None
    levels_db: np.ndarray | None = None
    draft: CTCText | None = None
    section: int = 0

    @classmethod
    def of_span(cls, span: Span, recording: Samples, audio: mx.array | None) -> Self:
        """The chunk for a span. Its last frame may be more than is left of the recording."""
        duration = recording.duration
        end = min(span.end / FRAMES_PER_SECOND, duration)
        begin = span.start / FRAMES_PER_SECOND
        return cls(
            start=max(begin, (span.first - ONSET_PADDING_FRAMES) / FRAMES_PER_SECOND),
            end=min(end, (span.last + RELEASE_PADDING_FRAMES) / FRAMES_PER_SECOND),
            begin=begin,
            duration=end - begin,
            audio=audio,
            regions=[
                (first / FRAMES_PER_SECOND, min(last / FRAMES_PER_SECOND, duration))
                for first, last in span.regions
            ],
            section=span.section,
        )


class SpanFinder:
    """Where to cut a recording that is still coming in: where Silero VAD, and the letters of a CTC
    head if there is one, leave a pause.

    Args:
        window: see `Segmenter`.
        part: whose speech is wanted, and
        first: the frame that is the first to be pushed for it, see `Halo`.
        blank: a pause divides parts only if the head writes nothing in it either, since a chunk has
            the whole of a word, or label that lasts, which goes on beyond its span.
    """

    def __init__(
        self,
        options: ChunkOptions,
        window: int,
        *,
        part: Part = WHOLE,
        first: int = 0,
        blank: bool = False,
    ):
        self._segmenter = options.segmenter(window, first)
        self._own = OwnSpeech(part, first, self._segmenter.apart)
        self._blank, self._all = blank, not options.vad
        self._vad = RecordingVAD(options.vad_threshold, first)
        # what the head and the VAD say of the frames that were not cut yet, and of a few before
        self._letters, self._detected = SpeechActivity.none(), np.zeros(0, bool)
        self._before = 0

    @property
    def start(self) -> int:
        """The first frame that may be in a span to come."""
        return self._segmenter.start

    @property
    def ended(self) -> bool:
        """Whether all spans of the part were found."""
        return self._own.ended

    def push(
        self, samples: mx.array, letters: SpeechActivity | None = None, *, last: bool
    ) -> list[Span]:
        """Take in the next samples; returns the spans that are now certain.

        Args:
            letters: what the head says of the next frames; without a head what the VAD does.
            last: the recording ends with them.
        """
        activity = self._vad.push(samples)
        if last:
            activity += self._vad.finish()
        self._letters += activity if letters is None else letters
        self._detected = np.append(self._detected, activity.speech | self._all)
        known = min(len(self._letters), self._detected.size)
        speech = widened(self._detected[:known], self._letters.speech[:known])
        certain = slice(self._before, max(self._before, known - (0 if last else REACH_FRAMES)))
        told = SpeechActivity(speech, self._letters.level[:known])[certain]
        written = self._letters.speech[certain] & self._blank
        forgotten = max(0, certain.stop - REACH_FRAMES)
        self._letters, self._detected = self._letters[forgotten:], self._detected[forgotten:]
        self._before = certain.stop - forgotten
        spans = self._segmenter.push(self._own.push(told, written))
        if last:
            spans += self._segmenter.finish()
        return [replace(span, section=self._own.section(span.first)) for span in spans]


def with_samples(
    features: Iterator[mx.array], recording: Recording, first: int = 0
) -> Iterator[tuple[mx.array, mx.array, bool]]:
    """Features of a recording in parts, 50 frames a second, each with its samples, (n,), and
    whether it is the last; that one's samples are all that is left.

    Args:
        first: the frame that they begin with.
    """
    end = first
    for part, following in pairwise(chain(features, [None])):
        start, end = end, end + len(part)
        last = following is None
        stop = None if last else end * FRAME_SAMPLES
        yield part, recording.read(start * FRAME_SAMPLES, stop), last


def vad_chunks(
    recording: Recording,
    options: ChunkOptions,
    part: Part = WHOLE,
) -> Iterator[AudioChunk | None]:
    """Chunks of samples, cut by Silero VAD alone; `audio` is (samples,). See also
    `SpeechFamily.chunks`."""
    first = VAD_HALO.start(part)
    finder = SpanFinder(options, 1, part=part, first=first)
    for samples, last in _pushes(recording, first):
        for span in finder.push(samples, last=last):
            # what is left after the last frame, less than half of one, belongs to it
            rest = recording.size - span.end * FRAME_SAMPLES
            end = None if rest < FRAME_SAMPLES // 2 else span.end * FRAME_SAMPLES
            samples = recording.read(span.start * FRAME_SAMPLES, end)
            yield AudioChunk.of_span(span, recording, samples)
        yield None
        if finder.ended:
            return


def why_empty(duration: float, peak: float, segments: int) -> str:
    """Why a recording gave no text.

    Args:
        duration, peak: of the recording: seconds, and its greatest magnitude.
        segments: how many were decoded.
    """
    if round(duration * SAMPLING_RATE) < SHORTEST_SAMPLES:
        return f"it lasts {1000 * duration:.3g} ms, too short for speech"
    if peak < 10 ** (SILENCE_DBFS / 20):
        return "it is silent"
    if segments:
        found = "1 segment" if segments == 1 else f"{segments} segments"
        return f"the model found no words in what may be speech ({found})"
    return f"no speech was detected in it (its peak is {20 * math.log10(peak):.0f} dBFS)"


def _pushes(recording: Recording, first: int) -> Iterator[tuple[mx.array, bool]]:
    """The samples from the `first` frame on, some at a time, and whether each are the last."""
    size = VAD_HALO.push_frames * FRAME_SAMPLES
    start = first * FRAME_SAMPLES
    while start < recording.size:
        end = (start // size + 1) * size
        yield recording.read(start, end), end >= recording.size
        start = end
