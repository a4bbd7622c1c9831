"""What the pipeline asks of a family of speech models."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ..audio import Recording
from ..generation.protocols import Detokenizes
from ..processing.request import TranscriptionRequest
from .chunks import AudioChunk, ChunkOptions
from .ctc import CTCVocabulary


class SpeechProcessor(Protocol):
    """What every family's processor has."""

    tokenizer: Detokenizes


class SpeechFamily(Protocol):
    """A family's part of transcription, made of what `load` returned: `Family(model, processor)`.

    sampling_rate: of the recordings that its models were trained on, in Hz.
    ctc_vocabulary: what the labels of its CTC head mean; None without a head, or where nobody
        knows. Words have times where there is one.
    """

    sampling_rate: int
    ctc_vocabulary: CTCVocabulary | None

    def __init__(self, model: Any, processor: Any): ...

    def text_language(
        self, request: TranscriptionRequest, *, for_decoder: bool = True
    ) -> str | None:
        """Code of the language that the text will be in, if the request asks for one.

        Args:
            for_decoder: the request is made to the decoder; else it only describes the text.

        Raises:
            UnsupportedOptionError: the decoder was not trained for what is asked, or no model of
                the family for the language.
        """
        ...

    def can_draft(self, request: TranscriptionRequest) -> bool:
        """Whether a CTC head may write what the request asks for, punctuation included if that is
        asked for."""
        ...

    def chunks(
        self,
        recording: Recording,
        options: ChunkOptions,
        *,
        for_alignment: bool,
        drafts: bool,
        for_decoder: bool,
    ) -> Iterator[AudioChunk]:
        """The recording in order, cut where nobody speaks; what has no speech is left out.

        Args:
            for_alignment: give the CTC logits and levels that word times follow from.
            drafts: give what the CTC head writes.
            for_decoder: give the audio that `chunk_inputs` needs.
        """
        ...

    def chunk_inputs(
        self, chunks: Sequence[AudioChunk], request: TranscriptionRequest
    ) -> dict[str, Any]:
        """What `generate` needs to decode a batch of chunks, made `for_decoder`."""
        ...
