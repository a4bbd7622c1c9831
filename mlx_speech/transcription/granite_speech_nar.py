"""Transcription with Granite Speech NAR: chunks as with Granite Speech, whose drafts are edited."""

import math
from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx

from ..layers.ctc import collapsed
from ..models.granite_speech.pooling import bpe_labels
from ..models.granite_speech_nar.model import GraniteSpeechNarForCTC, refuse_options
from ..processing.granite_speech_nar import GraniteSpeechNarProcessor
from ..processing.request import TranscriptionRequest
from .ctc_decoder import CTCDecoder
from .edit_decoder import Draft, EditDecoder
from .family import ChunkDecoder, Decoding
from .granite_speech import EncodedOnce

# A draft is taken as it is where all of this holds. From ccyrene/granite-speech-4.1-2b-nar-turbo,
# where it costs at most 0.08 of a percent of word errors.
_MEAN_PROBABILITY, _LEAST_PROBABILITY = 0.92, 0.75  #: of its tokens, at least
_MEAN_ENTROPY_NATS = 0.45  #: of groups of frames, at most
_BLANKS = 0.9  #: share of groups of frames, at most
_REPEATED = 0.3  #: share of tokens that are the same as the one before, at most


class GraniteSpeechNarTranscription(EncodedOnce):
    """See `SpeechFamily`."""

    edits = True

    def __init__(self, model: GraniteSpeechNarForCTC, processor: GraniteSpeechNarProcessor):
        super().__init__(model, processor)
        self._rates_drafts = False

    def text_language(
        self, request: TranscriptionRequest, *, for_decoder: bool = True
    ) -> str | None:
        return self._processor.text_language(request)

    def can_draft(self, request: TranscriptionRequest) -> bool:
        """What `text_language` lets through, the head of tokens writes."""
        return True

    def decoder(self, how: Decoding) -> ChunkDecoder:
        refuse_options(how.decoder_options)
        self._rates_drafts = how.skip_editor
        if how.ctc_only:
            return CTCDecoder(self, how.request, how.word_timestamps)
        tokenizer = self._processor.tokenizer
        given = self, how.request, how.word_timestamps
        return EditDecoder(*given, model=self._model, tokenizer=tokenizer)

    @property
    def writes_tokens(self) -> bool:
        return True

    def _draft(self, hidden: mx.array, logits: mx.array, non_blank: mx.array) -> Draft:
        model, tokenizer = self._model, self._processor.tokenizer
        entropies: list[float] | None = [] if self._rates_drafts else None
        best = bpe_labels(model, hidden, non_blank, entropies)
        labels, logprobs = collapsed(*best, model.bpe_blank)
        ids = [label - model.bpe_shift for label in labels]
        draft = Draft.of_tokens(ids, logprobs, tokenizer)
        tokens, certain = ids, False
        if entropies is not None:
            certain = is_certain(best[0].count(model.bpe_blank), entropies, ids, logprobs)
        if model.config.normalizes_drafts:
            text = draft.text.lower()
            tokens = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return Draft(draft.text, tokens, ids, logprobs, tokenizer, certain=certain)


def is_certain(
    blanks: int, entropies: Sequence[float], tokens: Sequence[int], logprobs: Sequence[float]
) -> bool:
    """Whether a draft needs no editing.

    Args:
        blanks: groups of frames that the head says nothing about.
        entropies: of each group.
        tokens: of the draft.
        logprobs: of each token.
    """
    if not tokens:
        return False
    probabilities = [math.exp(logprob) for logprob in logprobs]
    repeated = sum(a == b for a, b in pairwise(tokens))
    return (
        sum(probabilities) >= _MEAN_PROBABILITY * len(tokens)
        and min(probabilities) >= _LEAST_PROBABILITY
        and sum(entropies) <= _MEAN_ENTROPY_NATS * len(entropies)
        and blanks <= _BLANKS * len(entropies)
        and repeated <= _REPEATED * max(1, len(tokens) - 1)
    )
