"""Its processor: recordings -> how long they last; ids -> letters."""

from __future__ import annotations

import mlx.core as mx

from .prompts import check_plain
from .request import TranscriptionRequest

_PLAIN = TranscriptionRequest()


class ToyTokenizer:
    def decode(self, ids, *, skip_special_tokens=False) -> str:
        return "".join(chr(96 + i) for i in ids if i != 0)


class ToyProcessor:
    sampling_rate = 16000
    languages, target_languages = ("en",), ()

    def __init__(self):
        self.tokenizer = ToyTokenizer()

    @classmethod
    def from_pretrained(cls, folder, *, name=None):
        return cls()

    def text_language(self, request):
        check_plain("a toy", request, self.languages)
        return "en"

    def speech_inputs(self, samples, request=_PLAIN):
        self.text_language(request)
        recordings = samples if isinstance(samples, list) else [samples]
        seconds = [[each.size / self.sampling_rate] for each in recordings]
        return {"input_features": mx.array(seconds)}
