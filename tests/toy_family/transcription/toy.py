"""How it transcribes: cut by Silero VAD, written token by token."""

from __future__ import annotations

from ..errors import UnsupportedOptionError
from .chunks import VAD_HALO, vad_chunks
from .live_encoder import NO_LIVE_TEXT
from .parts import WHOLE
from .segment_decoder import generative_decoder


class ToyTranscription:
    ctc_vocabulary = None
    edits = False
    halo = VAD_HALO

    def __init__(self, model, processor):
        self._model, self._processor = model, processor
        self.sampling_rate = processor.sampling_rate

    def text_language(self, request, *, for_decoder=True):
        return self._processor.text_language(request)

    def can_draft(self, request):
        return False

    def decoder(self, how):
        return generative_decoder(self._model, self._processor, self, how)

    def chunks(self, recording, options, *, for_alignment, drafts, for_decoder, part=WHOLE):
        return vad_chunks(recording, options, part=part)

    def live_encoder(self):
        raise UnsupportedOptionError(NO_LIVE_TEXT)

    def chunk_inputs(self, chunks, request):
        return self._processor.speech_inputs([chunk.audio for chunk in chunks], request)
