"""Transcription with Granite Speech 5.0 TurboCTC: encoded once as a stream, cut and written by its
CTC head."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
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
from .vad import REACH_FRAMES, SpeechActivity, ctc_vad

_WITHIN_WORDS = 3  #: frames of the head, 80 ms each, from one label of a word to the next, at most
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
    ) -> Iterator[AudioChunk | None]:
        """The recording is encoded once, whatever its cuts. Where to cut it is what the CTC head
        says, four frames of 20 ms at a time; the sound's energy has to agree."""
        subsampling = self._model.config.encoder_config.subsampling
        finder = SpanFinder(options.segmenter(subsampling))
        stream = self._model.encode_stream()
        frames = told = 0
        labels, logprobs = np.zeros(0, int), np.zeros(0, np.float32)
        held = written = 0  # of the head: the first frame of these, and the first not in a chunk
        features = self._processor.feature_extractor.stream(recording, PART_FRAMES)
        for part, samples, last in with_samples(features, recording):
            frames += len(part)
            (logits,) = self._model.logits(stream.push(part, last=last))
            activity = ctc_vad(logits, self.ctc_vocabulary.blank)
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
                begin, end = (edge // subsampling - held for edge in (span.start, span.end))
                # labels are known so far beyond any cut
                end = self._word_end(labels, end, end + REACH_FRAMES // subsampling)
                own = slice(max(begin, written - held), end)
                written = held + end
                draft = subword_text(labels[own], logprobs[own], self.ctc_vocabulary)
                chunk = replace(AudioChunk.of_span(span, recording, None), draft=draft)
                if for_alignment:
                    at = (held + own.start) * subsampling
                    chunk = _with_levels(chunk, at, recording, subsampling)
                yield chunk
            needed = finder.segmenter.start // subsampling - held
            labels, logprobs = labels[needed:], logprobs[needed:]
            held += needed
            mx.clear_cache()
            yield None

    def _word_end(self, labels: np.ndarray, end: int, limit: int) -> int:
        """Where the word ends that a cut at `end` would divide, if there is one; in frames of the
        head, as the cut. Its labels from `limit` on are no longer looked at."""
        places = np.flatnonzero(labels != self.ctc_vocabulary.blank).tolist()
        earlier = bisect_left(places, end)
        for before, place in pairwise(places[earlier - 1 :] if earlier else ()):
            label, following = int(labels[before]), int(labels[place])
            same = place == before + 1 and label == following
            near = place <= before + _WITHIN_WORDS and place < limit
            if not (same or (near and self.ctc_vocabulary.joined(label, following))):
                break
            end = place + 1
        return end


def _with_levels(
    chunk: AudioChunk, first_frame: int, recording: Recording, subsampling: int
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
