"""A model, and what it is asked to do with speech, whatever the recording."""

import os
from dataclasses import dataclass
from typing import Any

from ..audio import SAMPLING_RATE
from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..fields import fitted
from ..generation.protocols import GenerativeModel
from ..loading import architecture, load
from ..models.base import PretrainedModel
from ..processing.protocols import SpeechProcessor
from ..processing.request import TranscriptionRequest
from .ctc_decoder import check_ctc_only
from .family import ChunkDecoder, Decoding, SpeechFamily, WordTimes

#: what `load` takes, or what it returned
Model = str | os.PathLike | tuple[GenerativeModel, SpeechProcessor]


@dataclass(frozen=True)
class Prepared:
    """A model, and what it is to do with chunks.

    decoder: makes segments of those of one recording.
    language: code of the text's, if one was asked for.
    """

    family: SpeechFamily
    how: Decoding
    decoder: ChunkDecoder
    language: str | None

    def new_decoder(self) -> ChunkDecoder:
        """One for another recording."""
        return self.family.decoder(self.how)

    @property
    def least_part(self) -> float | None:
        """The least sensible length of a part of a recording that is divided, in seconds; None: it
        cannot be, for what is said of its chunks depends on those before, or on chance."""
        divides = self.decoder.independent and not self.decoder.sampling
        return self.family.halo.least_part if divides else None

    @property
    def chunk_parts(self) -> dict[str, Any]:
        """What chunks are to have for the decoder, as arguments of `SpeechFamily.chunks`."""
        decoder = self.decoder
        alignment = decoder.vocabulary is not None
        parts = {"drafts": decoder.drafting, "for_decoder": decoder.needs_audio}
        return {"for_alignment": alignment, **parts}


def prepare_decoding(
    model: Model,
    request: TranscriptionRequest = TranscriptionRequest(),
    options: dict[str, Any] | None = None,
    *,
    speakers: bool = False,
    word_timestamps: bool | WordTimes = False,
    draft: bool = True,
    ctc_only: bool = False,
    skip_editor: bool = False,
    streaming: bool = False,
) -> Prepared:
    """Load the model, and settle what it is to do, whatever the recording; errors as in
    `transcribe`.

    Args:
        options: of generation.
        streaming: texts are to come piece by piece. All else is as for `transcribe`.
    """
    word_timestamps = fitted("word_timestamps", word_timestamps, bool | WordTimes)
    speakers = fitted("speakers", speakers, bool)
    draft = fitted("draft", draft, bool)
    options = dict(options or {})
    ctc_only = fitted("ctc_only", ctc_only, bool)
    skip_editor = fitted("skip_editor", skip_editor, bool)
    asked = word_timestamps, streaming, draft, ctc_only, skip_editor, speakers
    how = Decoding(request, options, *asked)
    if ctc_only:
        check_ctc_only(request, how.decoder_options)
    if isinstance(model, str | os.PathLike):
        model = load(model)
    if not isinstance(model, tuple) or len(model) != 2:
        raise InputError(
            f"model is a {type(model).__name__}, but must be a folder, a repository id, or the "
            "(model, processor) that load returns"
        )
    family = speech_family(*model)
    if family.sampling_rate != SAMPLING_RATE:
        raise CheckpointError(
            f"the model was trained on audio of {family.sampling_rate} Hz; only models for "
            f"{SAMPLING_RATE} Hz can be used for transcription"
        )
    if skip_editor and not family.edits:
        message = "{skip_editor} is for models that edit drafts; Granite Speech 4.1 NAR does"
        raise UnsupportedOptionError.about(message)
    for tagged in how.tagged_requests:
        family.text_language(tagged)  # raises where its models know no such tags
    decoder = family.decoder(how)
    return Prepared(family, how, decoder, family.text_language(request, for_decoder=not ctc_only))


def speech_family(model: GenerativeModel, processor: SpeechProcessor) -> SpeechFamily:
    """What its family adds to a model.

    Raises:
        InputError: it is no model, or the processor is that of another family.
        UnsupportedOptionError: it is not a speech model.
    """
    if not isinstance(model, PretrainedModel):
        raise InputError(f"the first of (model, processor) is a {type(model).__name__}, no model")
    kind = model.config.model_type
    row = architecture(kind)
    if not row.is_speech:
        raise UnsupportedOptionError(
            f"a {kind} model is not a speech model, which transcription needs"
        )
    if not isinstance(processor, row.processor_class):
        wrong, right = type(processor).__name__, row.processor_class.__name__
        raise InputError(f"a {kind} model goes with a {right}, but a {wrong} was given")
    return row.transcription_class(model, processor)
