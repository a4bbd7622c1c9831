"""From chunks to the texts that a model makes of their drafts in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from ..errors import ContextLengthError
from ..generation.protocols import Detokenizes
from ..models.granite_speech_nar.model import GraniteSpeechNarForCTC
from .chunks import AudioChunk
from .ctc_decoder import CTCDecoder
from .ctc_text import CTCText


@dataclass(frozen=True)
class Draft(CTCText):
    """What the encoder's head of tokens writes.

    certain: it may be taken as it is.
    """

    certain: bool = False


@dataclass
class EditDecoder(CTCDecoder):
    """Makes segments of drafts that a model edits, several at once; a `ChunkDecoder`.

    tokenizer: of the model.
    """

    model: GraniteSpeechNarForCTC = field(kw_only=True)
    tokenizer: Detokenizes = field(kw_only=True)

    needs_audio = True  #: chunks bring what the editor looks at

    def _texts(self, chunks: Sequence[AudioChunk]) -> list[CTCText]:
        """Drafts that are empty stay so: asked about nothing, the editor may invent a text."""
        texts: list[CTCText] = [cast(Draft, chunk.draft) for chunk in chunks]
        edited = [
            number
            for number, draft in enumerate(texts)
            if draft.tokens and not cast(Draft, draft).certain
        ]
        if edited:
            for number in edited:
                self._check_length(chunks[number])
            audio = [chunks[number].audio for number in edited]
            states = self.model.edit(audio, [texts[number].tokens for number in edited])
            for number, own in zip(edited, states, strict=True):
                texts[number] = CTCText.of_tokens(*self.model.said(own), self.tokenizer)
        return texts

    def _check_length(self, chunk: AudioChunk) -> None:
        """Raises `ContextLengthError` where a chunk and its draft are too long for the model."""
        draft, context = cast(Draft, chunk.draft), self.model.context_length
        audio = 0 if chunk.audio is None else len(chunk.audio)
        if audio + len(self.model.slots(draft.tokens)) > context:
            message = (
                "a segment of {seconds:.1f} s with a draft of {tokens} tokens is more than the "
                "model's context of {context} positions holds; lower {chunk_duration}"
            )
            raise ContextLengthError.about(
                message, seconds=chunk.duration, tokens=len(draft.tokens), context=context
            )
