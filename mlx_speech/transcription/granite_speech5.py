"""Transcription with Granite Speech 5.0 TurboCTC: encoded once as a stream, cut and written by its
CTC head."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from ..audio import Recording
from ..layers.ctc import best_labels
from ..models.granite_speech5.model import GraniteSpeech5ForCTC, refuse_options
from ..processing.granite_speech5 import GraniteSpeech5Processor
from ..processing.request import TranscriptionRequest
from .alignment import frame_levels
from .chunks import AudioChunk, ChunkOptions, SpanFinder, with_samples
from .ctc import SubwordVocabulary
from .ctc_decoder import CTCDecoder
from .ctc_text import subword_text
from .family import ChunkDecoder, Decoding
from .frames import FRAME_SAMPLES, FRAMES_PER_SECOND
from .segmenter import Span
from .vad import SpeechActivity, ctc_vad


class GraniteSpeech5Transcription:
    """See `SpeechFamily`; chunks have no `audio`, as there is no decoder."""

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
        refuse_options({**how.options, "draft": None if how.draft else False})
        return CTCDecoder(self, how.request, how.word_timestamps)

    def chunks(
        self,
        recording: Recording,
        options: ChunkOptions,
        *,
        for_alignment: bool = False,
        drafts: bool = True,
        for_decoder: bool = False,
    ) -> Iterator[AudioChunk]:
        """The recording is encoded once, whatever its cuts. Where to cut it is what the CTC head
        says, four frames of 20 ms at a time; the sound's energy has to agree."""
        subsampling = self._model.config.encoder_config.subsampling
        finder = SpanFinder(options.segmenter(subsampling))
        stream = self._model.encode_stream()
        frames = told = 0
        labels, logprobs = np.zeros(0, int), np.zeros(0, np.float32)
        held = 0  # the first frame of these
        features = self._processor.feature_extractor.stream(recording)
        for part, samples, last in with_samples(features, recording):
            frames += len(part)
            (logits,) = self._model.logits(stream.push(part, last=last))
            activity = ctc_vad(logits)
            letters = SpeechActivity(
                np.repeat(activity.speech, subsampling), np.repeat(activity.level, subsampling)
            )
            told += len(letters)
            if last:  # the head has nothing for what does not fill a frame of its own
                rest = frames - told
                letters += SpeechActivity(np.zeros(rest, bool), np.zeros(rest, np.float32))
            new_labels, new_logprobs = best_labels(logits)
            labels = np.append(labels, np.array(new_labels, int))
            logprobs = np.append(logprobs, np.array(new_logprobs, np.float32))
            for span in finder.push(samples, letters, last=last):
                own = slice((span.start - held) // subsampling, (span.end - held) // subsampling)
                draft = subword_text(labels[own], logprobs[own], self.ctc_vocabulary)
                chunk = replace(AudioChunk.of_span(span, recording, None), draft=draft)
                if for_alignment:
                    chunk = _with_levels(chunk, span, recording, subsampling)
                yield chunk
            needed = (finder.segmenter.start - held) // subsampling
            labels, logprobs = labels[needed:], logprobs[needed:]
            held += needed * subsampling
            mx.clear_cache()


def _with_levels(
    chunk: AudioChunk, span: Span, recording: Recording, subsampling: int
) -> AudioChunk:
    """The chunk with what places its words; its draft's frames are the head's of the span."""
    start, end = (round(seconds * FRAMES_PER_SECOND) for seconds in (chunk.start, chunk.end))
    samples = recording.read(start * FRAME_SAMPLES, end * FRAME_SAMPLES)
    wrote: Any = chunk.draft
    first, last = wrote.label_frames
    own = span.start - start
    edges = first * subsampling + own, (last + 1) * subsampling + own - 1
    inside = tuple(edge.clip(0, end - start - 1) for edge in edges)
    levels = frame_levels(samples, end - start)
    return replace(chunk, draft=replace(wrote, label_frames=inside), levels_db=levels)
