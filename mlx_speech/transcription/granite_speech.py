"""Transcription with Granite Speech: encoded once as a stream, cut by the CTC head."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import mlx.core as mx

from ..audio import Recording
from ..errors import ContextLengthError, UnsupportedOptionError
from ..layers.ctc import best_labels, distinct
from ..models.conformer import BLANK
from ..models.conformer_stream import reach_frames
from ..models.conformer_window import Halos
from ..models.granite_speech.model import GraniteSpeechForConditionalGeneration
from ..models.granite_speech.pooling import bpe_labels
from ..processing.granite_speech import GraniteSpeechProcessor
from ..processing.log_mel import PART_FRAMES
from ..processing.prompts import language_code
from ..processing.request import TranscriptionRequest
from .alignment import frame_levels
from .chunks import AudioChunk, ChunkOptions, Samples, SpanFinder
from .ctc import SPACE, CTCVocabulary
from .ctc_text import CTCText, bpe_text, character_text, written
from .encoded_chunks import encoded_chunks
from .family import ChunkDecoder, Decoding
from .frames import FRAME_SAMPLES, FRAMES_PER_SECOND
from .live_encoder import NO_LIVE_TEXT, LiveEncoder
from .parts import WHOLE, Halo, Part
from .segment_decoder import TOKENS_OVERHEAD, generative_decoder, seconds_in_context
from .segmenter import Span
from .speakers import SpeakerDecoder
from .tag_decoder import TimeTagDecoder
from .vad import SpeechActivity, ctc_vad
from .windows import WindowDecoder

#: of what is encoded, those beyond it may still change the labels of so many
_HOLD_BACK_FRAMES = 15
#: of audio, ten a second, and text behind a prompt
_LEAST_ROOM_TOKENS = 10 * int(ChunkOptions.chunk_duration) + TOKENS_OVERHEAD


class Encoded(NamedTuple):
    """What the encoder says of some frames.

    hidden: (frames, output size).
    logits: (frames, labels) of the character head.
    non_blank: (frames,).
    """

    hidden: mx.array
    logits: mx.array
    non_blank: mx.array


class EncodedOnce(ABC):
    """What families with Granite Speech's encoder share: chunks of a recording that is encoded as a
    stream, whatever its cuts. A chunk's `audio` is the projected audio, (rows, hidden_size)."""

    def __init__(self, model: Any, processor: Any):
        self._model, self._processor = model, processor
        self.sampling_rate = processor.sampling_rate
        self.ctc_vocabulary = CTCVocabulary.of_head(model.encoder.config.output_dim)

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
        """Cut where Silero VAD detects no speech, and the encoder's CTC head writes no letters
        beside some."""
        wanted = {"for_alignment": for_alignment, "drafts": drafts, "for_decoder": for_decoder}
        extractor = self._processor.audio_processor
        first = self.halo.start(part)
        finder = SpanFinder(options, extractor.projector_window_size, part=part, first=first)
        space = None if self.ctc_vocabulary is None else SPACE
        stream = self._model.encode_stream()

        def encode(features: mx.array, last: bool) -> tuple[Encoded, SpeechActivity]:
            output = stream.push(features, last=last)
            non_blank = output.non_blank[..., None]
            new = Encoded(output.last_hidden_state, output.ctc_logits, non_blank)
            return new, ctc_vad(output.ctc_logits[0], space=space)

        def make_chunk(span: Span, kept: list[mx.array]) -> AudioChunk:
            hidden, logits, non_blank = (part[: span.end - span.start] for part in kept)
            return self.chunk(span, recording, Encoded(hidden, logits, non_blank[:, 0]), **wanted)

        return encoded_chunks(recording, extractor, finder, encode, make_chunk, first=first)

    @property
    def halo(self) -> Halo:
        """See `SpeechFamily`."""
        encoder = self._model.encoder
        size = encoder.config.context_size
        return Halo(PART_FRAMES, size, reach_frames(encoder.layers, size))

    def chunk(
        self,
        span: Span,
        recording: Samples,
        frames: Encoded,
        *,
        for_alignment: bool,
        drafts: bool,
        for_decoder: bool,
    ) -> AudioChunk:
        """The chunk for a span, given its frames; further arguments as of `chunks`."""
        audio = None
        if for_decoder:
            audio = self._model.project(frames.hidden[None])[0]
            mx.eval(audio)
        chunk = AudioChunk.of_span(span, recording, audio)
        if for_alignment:
            chunk = _with_letters(chunk, span, recording, frames.logits)
        return replace(chunk, draft=self._draft(*frames)) if drafts else chunk

    def live_encoder(self) -> LiveEncoder:
        """See `SpeechFamily`."""
        if not self.writes_tokens and self.ctc_vocabulary is None:
            raise UnsupportedOptionError(NO_LIVE_TEXT)
        return _LiveEncoder(self, self._model, self._processor)

    @property
    @abstractmethod
    def writes_tokens(self) -> bool:
        """Whether the encoder has a CTC head of tokens, which is better than that of characters."""

    @abstractmethod
    def _draft(self, hidden: mx.array, logits: mx.array, non_blank: mx.array) -> CTCText | None:
        """What a CTC head writes, if it can.

        Args:
            hidden: (frames, output size) of the encoder, of a span.
            logits: (frames, labels) of its character head.
            non_blank: (frames,) of the encoder.
        """


class _LiveEncoder(LiveEncoder):
    """See there. Text is what the better CTC head that there is writes.

    Args:
        family: what `live_encoder` is called on.
    """

    def __init__(self, family: EncodedOnce, model: Any, processor: Any):
        extractor = processor.audio_processor
        self._family, self._model = family, model
        self._tokenizer, self._vocabulary = processor.tokenizer, cast(Any, family.ctc_vocabulary)
        self._writes_tokens = family.writes_tokens
        super().__init__(
            extractor,
            self._window,
            block_frames=model.encoder.config.context_size,
            span_frames=extractor.projector_window_size,
            label_frames=model.bpe_frames if self._writes_tokens else 1,
            hold_back=_HOLD_BACK_FRAMES,
        )

    def _window(
        self, features: mx.array, halos: Halos, places: Sequence[int]
    ) -> tuple[Encoded, list[Halos]]:
        output, kept = self._model.encode_window(features, halos, places)
        hidden, logits = output.last_hidden_state[0], output.ctc_logits[0]
        return Encoded(hidden, logits, output.non_blank[0]), kept

    def text(self, labels: Sequence[int]) -> str:
        if not self._writes_tokens:
            return written(distinct(labels, BLANK), self._vocabulary)
        shift = self._model.bpe_shift
        tokens = [label - shift for label in distinct(labels, self._model.bpe_blank)]
        return written(tokens, self._tokenizer)

    def _labels(self, hidden: mx.array, logits: mx.array, non_blank: mx.array) -> list[int]:
        if self._writes_tokens:
            return bpe_labels(self._model, hidden, non_blank)[0]
        return best_labels(logits)[0]

    def _activity(self, hidden: mx.array, logits: mx.array, non_blank: mx.array) -> SpeechActivity:
        return ctc_vad(logits, space=None if self._vocabulary is None else SPACE)

    def _chunk(self, span, samples, encoded, **wanted):
        frames = Encoded(*(part[: span.end - span.start] for part in encoded))
        return self._family.chunk(span, samples, frames, **wanted)


class GraniteSpeechTranscription(EncodedOnce):
    """See `GenerativeFamily`."""

    edits = False

    def __init__(
        self, model: GraniteSpeechForConditionalGeneration, processor: GraniteSpeechProcessor
    ):
        super().__init__(model, processor)
        self._asked: tuple[TranscriptionRequest | None, str] = None, ""  # the latest, as a prompt

    def text_language(
        self, request: TranscriptionRequest, *, for_decoder: bool = True
    ) -> str | None:
        if for_decoder:
            language = self._processor.text_language(request)
            self._check_room(request)
            return language
        return request.language and language_code(request.language)

    def _check_room(self, request: TranscriptionRequest) -> None:
        """Raises `ContextLengthError` where the caller's keywords, or prompt, leave no room for a
        segment of the usual length."""
        own = {"keywords": request.keywords, "prompt": request.prompt}
        option = next((name for name, value in own.items() if value), None)
        if option is None:
            return
        prompt = self._processor.speech_prompt(self._processor.prompts.instruction(request))
        tokens, context = len(self._processor.tokenizer.encode(prompt)), self._model.context_length
        if tokens + _LEAST_ROOM_TOKENS > context:
            message = (
                "{option}: a prompt of {tokens} tokens leaves no room for speech in the model's "
                "context of {context}; make it shorter"
            )
            raise ContextLengthError.about(message, option=option, tokens=tokens, context=context)

    def can_draft(self, request: TranscriptionRequest) -> bool:
        """The BPE head writes as the decoder does, the character head neither punctuation nor
        capitals; both what was said, no translation."""
        bare = not request.punctuate and self.ctc_vocabulary is not None
        whole = request.tags is None and request.prefix_text is None
        said = request.task == "transcribe" and whole
        return said and (self._model.has_bpe_head or bare)

    def decoder(self, how: Decoding) -> ChunkDecoder:
        parts = self._model, self._processor, self
        if how.speakers:
            return SpeakerDecoder(*parts, how)
        if how.word_timestamps == "tags":
            return TimeTagDecoder(*parts, how)
        if how.request.prefix_text is not None:
            return WindowDecoder(*parts, how)
        longest = math.inf
        if self._processor.prompts.continues:  # Plus, made for so much
            longest = min(WindowDecoder.longest_seconds, seconds_in_context(self._model))
        return generative_decoder(*parts, how, longest)

    @property
    def writes_tokens(self) -> bool:
        return self._model.has_bpe_head

    def _draft(self, hidden: mx.array, logits: mx.array, non_blank: mx.array) -> CTCText | None:
        """What the better CTC head that there is writes."""
        tokenizer, vocabulary = self._processor.tokenizer, self.ctc_vocabulary
        if self._model.has_bpe_head:
            return bpe_text(self._model, tokenizer, hidden, non_blank)
        return None if vocabulary is None else character_text(logits, vocabulary, tokenizer)

    def chunk_inputs(
        self, chunks: Sequence[AudioChunk], request: TranscriptionRequest
    ) -> dict[str, Any]:
        if request is not self._asked[0]:
            instruction = self._processor.prompts.instruction(request)
            prompt = self._processor.speech_prompt(instruction, request.prefix_text)
            self._asked = request, prompt
        return self._processor.audio_inputs([chunk.audio for chunk in chunks], self._asked[1])


def _with_letters(
    chunk: AudioChunk, span: Span, recording: Samples, logits: mx.array
) -> AudioChunk:
    """The chunk with what places its words, given the logits of its span."""
    # words are where the speech is, though their first letters may come before it
    first = round(chunk.start * FRAMES_PER_SECOND)
    logits = logits[first - span.start : round(chunk.end * FRAMES_PER_SECOND) - span.start]
    mx.eval(logits)  # another thread may ask for what is lazy here, and could not compute it
    samples = recording.read(first * FRAME_SAMPLES, (first + len(logits)) * FRAME_SAMPLES)
    return replace(chunk, ctc_logits=logits, levels_db=frame_levels(samples, len(logits)))
