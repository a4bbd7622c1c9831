"""Transcription with Granite Speech 5.0 TurboCTC: encoded once as a stream, cut and written by its
CTC head."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from ..audio import Recording
from ..layers.ctc import best_labels, distinct, likeliest
from ..models.conformer_stream import reach_frames
from ..models.conformer_window import Halos
from ..models.granite_speech5.model import GraniteSpeech5ForCTC, refuse_options
from ..processing.granite_speech5 import GraniteSpeech5Processor
from ..processing.request import TranscriptionRequest
from .alignment import frame_levels
from .chunks import AudioChunk, ChunkOptions, Samples, SpanFinder
from .ctc import SubwordVocabulary
from .ctc_decoder import CTCDecoder
from .ctc_text import subword_text, written
from .encoded_chunks import encoded_chunks
from .family import ChunkDecoder, Decoding
from .frames import FRAME_SAMPLES, FRAMES_PER_SECOND
from .live_encoder import LiveEncoder
from .parts import WHOLE, Halo, Part
from .segmenter import Span
from .vad import REACH_FRAMES, SpeechActivity, ctc_vad

_WITHIN_WORDS = 3  #: frames of the head, 80 ms each, from one label of a word to the next, at most
#: frames at the end of a recording that others would change: 1.6 s, as its authors look ahead
_HOLD_BACK_FRAMES = 80
#: frames of features encoded together: as fast as more of them, in less memory
PART_FRAMES = 1000


class GraniteSpeech5Transcription:
    """See `SpeechFamily`; chunks have no `audio`, as there is no decoder."""

    edits = False

    def __init__(self, model: GraniteSpeech5ForCTC, processor: GraniteSpeech5Processor):
        self._model, self._processor = model, processor
        self.sampling_rate = processor.sampling_rate
        self.ctc_vocabulary = SubwordVocabulary(processor.tokenizer)

    def text_language(
        self, request: TranscriptionRequest, *, for_decoder: bool = True
    ) -> str | None:
        return self._processor.text_language(request)

    def can_draft(self, request: TranscriptionRequest) -> bool:
        return True

    def decoder(self, how: Decoding) -> ChunkDecoder:
        """What the CTC head writes is all there is, with or without `ctc_only`."""
        refuse_options(how.decoder_options)
        return CTCDecoder(self, how.request, how.word_timestamps)

    def chunks(
        self,
        recording: Recording,
        options: ChunkOptions,
        *,
        for_alignment: bool = False,
        drafts: bool = True,
        for_decoder: bool = False,
        part: Part = WHOLE,
    ) -> Iterator[AudioChunk | None]:
        """The recording is encoded once, whatever its cuts. Where to cut it is what the CTC head
        says where Silero VAD detects speech, four frames of 20 ms at a time."""
        subsampling = self._model.config.encoder_config.subsampling
        first = self.halo.start(part)
        finder = SpanFinder(options, subsampling, part=part, first=first, blank=True)
        stream, blank = self._model.encode_stream(), self.ctc_vocabulary.blank
        writer = _Writer(self.ctc_vocabulary, subsampling)

        def encode(features: mx.array, last: bool) -> tuple[list[mx.array], SpeechActivity]:
            (logits,) = self._model.logits(stream.push(features, last=last))
            new = [each[None, :, None] for each in likeliest(logits)]
            return new, head_activity(logits, blank, subsampling)

        def make_chunk(span: Span, kept: list[mx.array]) -> AudioChunk:
            labels, logprobs = (np.array(each[:, 0]) for each in kept)
            return writer.chunk(span, recording, labels, logprobs, for_alignment=for_alignment)

        return encoded_chunks(
            recording,
            self._processor.feature_extractor,
            finder,
            encode,
            make_chunk,
            first=first,
            push_frames=PART_FRAMES,
            stride=subsampling,
        )

    @property
    def halo(self) -> Halo:
        """See `SpeechFamily`."""
        config = self._model.config.encoder_config
        reach = reach_frames(self._model.encoder.layers, config.context_size)
        return Halo(PART_FRAMES, config.context_size * config.subsampling, reach)

    def live_encoder(self) -> LiveEncoder:
        """See `SpeechFamily`."""
        return _LiveEncoder(self._model, self._processor, self.ctc_vocabulary)


def head_activity(logits: mx.array, blank: int, subsampling: int) -> SpeechActivity:
    """What the head detects in each frame of 20 ms, so many of which it takes together."""
    activity = ctc_vad(logits, blank)
    return SpeechActivity(
        np.repeat(activity.speech, subsampling), np.repeat(activity.level, subsampling)
    )


class _LiveEncoder(LiveEncoder):
    """See there."""

    def __init__(
        self,
        model: GraniteSpeech5ForCTC,
        processor: GraniteSpeech5Processor,
        vocabulary: SubwordVocabulary,
    ):
        self._model, self._vocabulary = model, vocabulary
        config = model.config.encoder_config
        self._writer = _Writer(vocabulary, config.subsampling)
        super().__init__(
            processor.feature_extractor,
            self._window,
            block_frames=config.context_size * config.subsampling,
            span_frames=config.subsampling,
            label_frames=config.subsampling,
            hold_back=_HOLD_BACK_FRAMES,
            stride=config.subsampling,
        )

    def _window(
        self, features: mx.array, halos: Halos, places: Sequence[int]
    ) -> tuple[tuple[mx.array], list[Halos]]:
        hidden, kept = self._model.encode_window(features, halos, places)
        return (self._model.logits(hidden)[0],), kept

    def text(self, labels: Sequence[int]) -> str:
        return written(distinct(labels, self._vocabulary.blank), self._vocabulary)

    def _labels(self, logits: mx.array) -> list[int]:
        return best_labels(logits)[0]

    def _activity(self, logits: mx.array) -> SpeechActivity:
        return head_activity(logits, self._vocabulary.blank, self.stride)

    def _chunk(self, span, samples, encoded, **wanted):
        labels, logprobs = map(np.array, likeliest(*encoded))
        aligned = wanted["for_alignment"]
        return self._writer.chunk(span, samples, labels, logprobs, for_alignment=aligned)


class _Writer:
    """Makes chunks of one recording, with each word in one of them.

    Args:
        subsampling: frames of 20 ms that the head takes together.
    """

    def __init__(self, vocabulary: SubwordVocabulary, subsampling: int):
        self._vocabulary, self._subsampling = vocabulary, subsampling
        self._written = 0  # frames of the head that are in a chunk

    def chunk(
        self,
        span: Span,
        recording: Samples,
        labels: np.ndarray,
        logprobs: np.ndarray,
        *,
        for_alignment: bool,
    ) -> AudioChunk:
        """The next chunk.

        Args:
            labels, logprobs: the head's, from the span's first frame on, so far as they are known.
            for_alignment: it is to have what places its words.
        """
        begin, end = (edge // self._subsampling for edge in (span.start, span.end))
        # labels are known so far beyond any cut
        end = begin + self._word_end(
            labels, end - begin, end - begin + REACH_FRAMES // self._subsampling
        )
        first = max(begin, self._written)
        self._written = end
        own = slice(first - begin, end - begin)
        draft = subword_text(labels[own], logprobs[own], self._vocabulary)
        chunk = replace(AudioChunk.of_span(span, recording, None), draft=draft)
        if for_alignment:
            chunk = _with_levels(chunk, first * self._subsampling, recording, self._subsampling)
        return chunk

    def _word_end(self, labels: np.ndarray, end: int, limit: int) -> int:
        """Where the word ends that a cut at `end` would divide, if there is one; in frames of the
        head, as the cut. Its labels from `limit` on are no longer looked at."""
        places = np.flatnonzero(labels != self._vocabulary.blank).tolist()
        earlier = bisect_left(places, end)
        for before, place in pairwise(places[earlier - 1 :] if earlier else ()):
            label, following = int(labels[before]), int(labels[place])
            same = place == before + 1 and label == following
            near = place <= before + _WITHIN_WORDS and place < limit
            if not (same or (near and self._vocabulary.joined(label, following))):
                break
            end = place + 1
        return end


def _with_levels(
    chunk: AudioChunk, first_frame: int, recording: Samples, subsampling: int
) -> AudioChunk:
    """The chunk with what places its words; its draft's frames are the head's from `first_frame`
    on."""
    start, end = (round(seconds * FRAMES_PER_SECOND) for seconds in (chunk.start, chunk.end))
    samples = recording.read(start * FRAME_SAMPLES, end * FRAME_SAMPLES)
    wrote: Any = chunk.draft
    first, last = (edge * subsampling + first_frame - start for edge in wrote.label_frames)
    inside = tuple(edge.clip(0, end - start - 1) for edge in (first, last + subsampling - 1))
    levels = frame_levels(samples, end - start)
    return replace(chunk, draft=replace(wrote, label_frames=inside), levels_db=levels)
