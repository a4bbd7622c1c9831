"""Transcription with Speech2Text: cut by Silero VAD, encoded chunk by chunk."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..audio import Recording
from ..errors import UnsupportedOptionError
from ..models.speech_to_text.model import Speech2TextForConditionalGeneration
from ..processing.request import TranscriptionRequest
from ..processing.speech_to_text import Speech2TextProcessor
from .chunks import VAD_HALO, AudioChunk, ChunkOptions, vad_chunks
from .ctc import CTCVocabulary
from .family import ChunkDecoder, Decoding
from .live_encoder import NO_LIVE_TEXT, LiveEncoder
from .parts import WHOLE, Part
from .segment_decoder import generative_decoder


class Speech2TextTranscription:
    """See `SpeechFamily`; a chunk's `audio` is its samples, (n,)."""

    ctc_vocabulary: CTCVocabulary | None = None  #: there is no CTC head to align words with
    edits = False
    halo = VAD_HALO

    def __init__(self, model: Speech2TextForConditionalGeneration, processor: Speech2TextProcessor):
        self._model, self._processor = model, processor
        self.sampling_rate = processor.sampling_rate

    def text_language(
        self, request: TranscriptionRequest, *, for_decoder: bool = True
    ) -> str | None:
        return self._processor.text_language(request)

    def can_draft(self, request: TranscriptionRequest) -> bool:
        return False

    def decoder(self, how: Decoding) -> ChunkDecoder:
        longest = self._processor.max_seconds or math.inf
        return generative_decoder(self._model, self._processor, self, how, longest)

    def chunks(
        self,
        recording: Recording,
        options: ChunkOptions,
        *,
        for_alignment: bool = False,
        drafts: bool = False,
        for_decoder: bool = True,
        part: Part = WHOLE,
    ) -> Iterator[AudioChunk | None]:
        return vad_chunks(recording, options, part)

    def live_encoder(self) -> LiveEncoder:
        raise UnsupportedOptionError(NO_LIVE_TEXT)

    def chunk_inputs(
        self, chunks: Sequence[AudioChunk], request: TranscriptionRequest
    ) -> dict[str, Any]:
        return self._processor.speech_inputs([chunk.audio for chunk in chunks], request)
