"""From a recording to segments that are ready to be decoded, in memory that does not grow with it.

Both kinds of listeners cut where nobody speaks. One hears that by the encoder's CTC head, and
encodes the recording once, whatever its cuts; the other by the sound's energy, and leaves encoding
to the model, segment by segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from .activity import FRAME, Activity, EnergyActivity, SpeechExtents, ctc_activity
from .alignment import frame_levels
from .audio import Recording
from .ctc import CTCVocabulary
from .errors import InputError
from .layers.lora import use_adapter
from .models.granite_speech.encoder_stream import EncoderStream
from .segmentation import Segmenter, Span

#: encoder frames a second
FRAMES_PER_SECOND = 50
#: speech sets in and fades out too faintly to stand out: up to so many frames of it are not heard.
#: Times of segments are given with them; pauses are taken as they are heard, longer than they are
#: by as much, so that none that must end a segment is missed
FAINT_ONSET = 7
FAINT_RELEASE = 9


@dataclass(frozen=True)
class Cutting:
    """How a recording is cut.

    chunk_duration: the longest segment, in seconds.
    min_silence: a pause of so many seconds always ends a segment.

    Raises:
        InputError: one of them is no number of seconds that makes sense.
    """

    chunk_duration: float = 30.0
    min_silence: float = 1.0

    def __post_init__(self):
        for name, least in (("chunk_duration", 1.0), ("min_silence", 0.1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"{name} is {value!r}, but must be a number of seconds")
            if not least <= value < float("inf"):
                raise InputError(f"{name} is {value:g} s, but must be at least {least:g} s")

    def segmenter(self, window: int) -> Segmenter:
        """One for encoder frames, whose cuts are at multiples of `window`."""
        frames = int(self.chunk_duration * FRAMES_PER_SECOND)
        return Segmenter(
            window=window,
            max_frames=max(frames - frames % window, window),
            min_silence=round(self.min_silence * FRAMES_PER_SECOND),
        )


@dataclass(frozen=True)
class Heard:
    """A segment that is ready to be decoded.

    start, end: of the speech in it, in seconds of the recording.
    begin: where what the model hears of it begins, in seconds.
    duration: of what the model hears, in seconds.
    audio: for Granite Speech (audio tokens, hidden_size), for Speech2Text (samples,).
    ctc_logits: (frames, labels) of the CTC head from `start` to `end`, where word times are wanted.
    levels: (frames,) loudness, likewise.
    """

    start: float
    end: float
    begin: float
    duration: float
    audio: mx.array
    ctc_logits: mx.array | None = None
    levels: np.ndarray | None = None


class CTCListener:
    """Segments of a recording as Granite Speech hears them, one after the other.

    The recording is encoded once. Where to cut it, and whether there is anything to decode, is what
    the encoder's CTC head says; the sound's energy has to agree that there is more than silence or
    steady noise, over which some heads mutter.

    Args:
        model: its encoder and projector.
        extractor: makes the features.
        for_alignment: give what word times follow from.
    """

    def __init__(
        self,
        model,
        extractor,
        recording: Recording,
        cutting: Cutting,
        *,
        for_alignment: bool = False,
    ):
        self._model, self._extractor = model, extractor
        self._recording = recording
        self._segmenter = cutting.segmenter(extractor.projector_window_size)
        self._for_alignment = for_alignment
        vocabulary = CTCVocabulary.of_head(model.config.encoder_config.output_dim)
        self._space = vocabulary and vocabulary.label(" ")
        #: where speech was heard so far, part by part, see `Transcript.speech`
        self.speech: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Heard]:
        stream = EncoderStream(self._model.encoder)
        energy, frames = EnergyActivity(), 0
        hidden = logits = None
        held = 0  # the first frame of these
        extents = SpeechExtents()
        # what the head and the energy say of frames of which the other has not said anything yet
        letters, sound = Activity.none(), Activity.none()
        for features, last in _with_last(self._extractor.stream(self._recording)):
            start, frames = frames, frames + len(features)
            end = None if last else frames * FRAME
            sound += energy.push(self._recording.read(start * FRAME, end))
            if last:
                sound += energy.finish()
            with use_adapter(True):
                output = stream.push(features, last=last)
            letters += ctc_activity(output.ctc_logits[0], space=self._space)
            hidden = _joined(hidden, output.last_hidden_state[0])
            logits = _joined(logits, output.ctc_logits[0])
            mx.eval(hidden, logits)
            known = min(len(letters), len(sound))
            speech = extents.push(letters[:known], sound[:known].speech, last=last)
            letters, sound = letters[known:], sound[known:]
            self.speech.append(speech.speech)
            spans = self._segmenter.push(speech)
            if last:
                spans += self._segmenter.finish()
            for span in spans:
                part = slice(span.start - held, span.end - held)
                yield self._heard(span, hidden[part], logits[part])
            needed = self._segmenter.start - held
            # copies: slices would hold on to the whole
            hidden, logits = mx.contiguous(hidden[needed:]), mx.contiguous(logits[needed:])
            mx.eval(hidden, logits)
            held += needed
            mx.clear_cache()

    def _heard(self, span: Span, hidden: mx.array, logits: mx.array) -> Heard:
        with use_adapter(True):
            audio = self._model.projector(hidden[None])[0]
        mx.eval(audio)
        heard = _heard(span, self._recording, audio)
        if not self._for_alignment:
            return heard
        # words are where the speech is, though their first letters may come before it
        first = round(heard.start * FRAMES_PER_SECOND)
        logits = logits[first - span.start : round(heard.end * FRAMES_PER_SECOND) - span.start]
        samples = self._recording.read(first * FRAME, (first + len(logits)) * FRAME)
        return replace(heard, ctc_logits=logits, levels=frame_levels(samples, len(logits)))


class EnergyListener:
    """Segments of a recording by the energy of its sound alone.

    Args:
        max_seconds: longest segment that the model hears, if that is bounded.
    """

    #: frames that are looked at together, half a minute
    _PART_FRAMES = 1500

    def __init__(self, recording: Recording, cutting: Cutting, max_seconds: float | None):
        longest = min(cutting.chunk_duration, max_seconds or cutting.chunk_duration)
        self._recording = recording
        self._segmenter = replace(cutting, chunk_duration=longest).segmenter(1)
        self.speech: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Heard]:
        energy, extents = EnergyActivity(), SpeechExtents()
        part = self._PART_FRAMES * FRAME
        for start in range(0, self._recording.size, part):
            last = start + part >= self._recording.size
            sound = energy.push(self._recording.read(start, start + part))
            if last:
                sound += energy.finish()
            speech = extents.push(sound, sound.speech, last=last)
            self.speech.append(speech.speech)
            spans = self._segmenter.push(speech)
            if last:
                spans += self._segmenter.finish()
            yield from self._heard(spans)

    def _heard(self, spans: list[Span]) -> Iterator[Heard]:
        for span in spans:
            # what is left after the last frame, less than half of one, belongs to it
            rest = self._recording.size - span.end * FRAME
            end = None if rest < FRAME // 2 else span.end * FRAME
            samples = self._recording.read(span.start * FRAME, end)
            yield _heard(span, self._recording, samples)


def _heard(span: Span, recording: Recording, audio: mx.array) -> Heard:
    end = min(span.end / FRAMES_PER_SECOND, recording.duration)
    begin = span.start / FRAMES_PER_SECOND
    return Heard(
        start=max(begin, (span.first - FAINT_ONSET) / FRAMES_PER_SECOND),
        end=min(end, (span.last + FAINT_RELEASE) / FRAMES_PER_SECOND),
        begin=begin,
        duration=end - begin,
        audio=audio,
    )


def _with_last(parts: Iterator[mx.array]) -> Iterator[tuple[mx.array, bool]]:
    """Each part, and whether it is the last one."""
    previous = next(parts)
    for part in parts:
        yield previous, False
        previous = part
    yield previous, True


def _joined(before: mx.array | None, after: mx.array) -> mx.array:
    return after if before is None else mx.concatenate([before, after])
