from __future__ import annotations

from mlx_speech.errors import UnsupportedOptionError
from mlx_speech.transcription.chunks import ENERGY_HALO, energy_chunks
from mlx_speech.transcription.parts import WHOLE
from mlx_speech.transcription.segment_decoder import generative_decoder


class ToyTranscription:
    ctc_vocabulary = None
    edits = False
    halo = ENERGY_HALO

    def __init__(self, model, processor):
        self.model, self.processor = model, processor
        self.sampling_rate = processor.sampling_rate

    def text_language(self, request, *, for_decoder=True):
        if request.task == "translate":
            raise UnsupportedOptionError("task: toys do not translate")
        return "en"

    def can_draft(self, request):
        return False

    def decoder(self, how):
        return generative_decoder(self.model, self.processor, self, how)

    def chunks(self, recording, options, *, for_alignment, drafts, for_decoder, part=WHOLE):
        return energy_chunks(recording, options, part=part)

    def live_encoder(self):
        raise UnsupportedOptionError("toys write nothing at once")

    def chunk_inputs(self, chunks, request):
        return self.processor([chunk.duration for chunk in chunks])
