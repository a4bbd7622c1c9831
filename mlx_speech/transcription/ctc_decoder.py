"""From chunks to the texts that the encoder's CTC head writes, without the decoder."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, cast

from ..errors import InputError, UnsupportedOptionError
from ..processing.request import TranscriptionRequest
from .chunks import AudioChunk
from .ctc_text import CTCText
from .family import Decoded, SpeechFamily, WordTimes
from .transcript import Segment, TranscriptionDelta
from .words import place_words, words_of


def check_ctc_only(request: TranscriptionRequest, options: dict[str, Any]) -> None:
    """Raises `InputError` where something is asked for that only a decoder can do, whatever the
    model.

    Args:
        options: those of decoding; one that is None is not asked for.
    """
    if request.task != "transcribe":
        raise InputError.about("{ctc_only} writes what was said, and a translation is not")
    own = {"prompt": request.prompt, "prefix_text": request.prefix_text}
    asked = {**own, "keywords": request.keywords or None, **options}
    for name, value in asked.items():
        if value is not None:
            message = "{option} is for the decoder, which {ctc_only} goes without; leave one out"
            raise InputError.about(message, option=name)


@dataclass
class CTCDecoder:
    """Makes segments of what the CTC head wrote of chunks; a `ChunkDecoder`.

    word_timestamps: tell words and their times, if the family has a CTC vocabulary.

    Raises:
        UnsupportedOptionError: the model has no CTC head for what is asked.
    """

    family: SpeechFamily
    request: TranscriptionRequest
    word_timestamps: bool | WordTimes = False

    drafting = True  #: chunks bring what the head writes,
    needs_audio = False  #: and nothing for a decoder
    longest_chunk = math.inf
    sampling = False
    independent: ClassVar[bool] = True

    def __post_init__(self):
        #: of the CTC head, where words are to be told
        self.vocabulary = self.family.ctc_vocabulary if self.word_timestamps else None
        if self.family.can_draft(self.request):
            return
        if self.family.ctc_vocabulary is not None:
            message = (
                "{ctc_only} with {punctuate} needs a checkpoint with a BPE head: the text of the "
                "character head has neither punctuation nor capitals"
            )
            raise UnsupportedOptionError.about(message)
        message = (
            "{ctc_only} needs an encoder with a CTC head whose labels are known; Granite Speech "
            "models have one, save for 3.2"
        )
        raise UnsupportedOptionError.about(message)

    def decode(self, chunks: Iterable[AudioChunk], batch_size: int) -> Iterator[Decoded]:
        """See `ChunkDecoder`."""
        chunks = iter(chunks)
        while batch := list(islice(chunks, batch_size)):
            texts = zip(batch, self._texts(batch), strict=True)
            decoded = [(chunk, self._segment(chunk, text)) for chunk, text in texts]
            if self.vocabulary is not None:
                place_words(decoded, self.vocabulary)
            yield [(chunk, [segment]) for chunk, segment in decoded]

    def stream(
        self, chunk: AudioChunk, gap: str
    ) -> Generator[TranscriptionDelta, None, list[Segment]]:
        """See `ChunkDecoder`; the text is certain at once."""
        (((_, segments),),) = self.decode([chunk], 1)
        for segment in segments:
            yield TranscriptionDelta(gap + segment.text if segment.text else "", segment)
        return segments

    def _texts(self, chunks: Sequence[AudioChunk]) -> list[CTCText]:
        """What each of some chunks says."""
        return [cast(CTCText, chunk.draft) for chunk in chunks]

    def _segment(self, chunk: AudioChunk, wrote: CTCText) -> Segment:
        mean = sum(wrote.logprobs) / max(1, len(wrote.logprobs))
        segment = Segment(chunk.start, chunk.end, wrote.text, wrote.tokens, avg_logprob=mean)
        if wrote.tokens == wrote.labels:
            segment.logprobs = wrote.logprobs
        if self.vocabulary is not None:
            segment.words = words_of(segment, wrote.word_probabilities())
        return segment
