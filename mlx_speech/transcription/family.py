"""What the pipeline asks of a family of speech models."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

from ..audio import Recording
from ..errors import InputError
from ..processing.request import Tags, TranscriptionRequest
from .chunks import AudioChunk, ChunkOptions
from .ctc import Vocabulary
from .live_encoder import LiveEncoder
from .parts import WHOLE, Halo, Part
from .transcript import Segment, TranscriptionDelta

#: chunks in a row, and what was said in each: mostly one segment
Decoded = list[tuple[AudioChunk, list[Segment]]]
#: who tells the times of words: alignment with the CTC head, or the model by tags in its answers
WordTimes = Literal["ctc", "tags"]


@dataclass(frozen=True)
class Decoding:
    """How chunks are to become texts.

    request: what is asked about them.
    options: of `generate`.
    word_timestamps: tell words and their times, by alignment if the family can, or by tags.
    streaming: texts are to come piece by piece.
    draft: check what the CTC head wrote, where that gives the same texts, in fewer passes.
    ctc_only: take what the CTC head wrote as it is.
    skip_editor: take it as it is where the head was sure of it, of models that edit it.
    speakers: make a segment of each turn of a speaker.

    Raises:
        InputError: they contradict each other.
    """

    request: TranscriptionRequest = TranscriptionRequest()
    options: Mapping[str, Any] = field(default_factory=dict)
    word_timestamps: bool | WordTimes = False
    streaming: bool = False
    draft: bool = True
    ctc_only: bool = False
    skip_editor: bool = False
    speakers: bool = False

    def __post_init__(self):
        translates = self.request.task == "translate"
        if self.word_timestamps and translates:
            message = "{word_timestamps} are of what was said, and a translation is not"
            raise InputError.about(message)
        if self.speakers and translates:
            raise InputError.about("{speakers} are of what was said, and a translation is not")
        if self.skip_editor and self.ctc_only:
            raise InputError.about("{skip_editor}: {ctc_only} has no editor at all; leave one out")
        if self.tagged_requests and self.ctc_only:
            option = "speakers" if self.speakers else "word_timestamps"
            message = "{option}: the encoder knows no tags, and {ctc_only} goes without the decoder"
            raise InputError.about(message, option=option)
        if self.word_timestamps == "tags" and self.request.prefix_text is not None:
            message = "the times of {option} are counted from the beginning of an answer, which a "
            message += "{prefix_text} is in the place of; leave one out"
            raise InputError.about(message, option="word_timestamps")

    @property
    def decoder_options(self) -> dict[str, Any]:
        """What is asked of a decoder alone; what is None is not asked for."""
        return {**self.options, "draft": None if self.draft else False}

    @property
    def tagged_requests(self) -> list[TranscriptionRequest]:
        """The request for an answer with tags, for each kind of these that is needed."""
        times = self.word_timestamps == "tags"
        needed: dict[Tags, bool] = {"speakers": self.speakers, "times": times}
        return [replace(self.request, tags=tags) for tags, asked in needed.items() if asked]


class ChunkDecoder(Protocol):
    """Makes segments of the chunks of one recording.

    vocabulary: of the CTC head, where words are to be told.
    drafting: whether chunks are to bring what the CTC head writes,
    needs_audio: and whether the audio for a decoder.
    longest_chunk: seconds of audio that a chunk may have at most.
    independent: whether what a chunk gives does not depend on those before it.
    sampling: whether tokens are drawn at random.
    """

    independent: ClassVar[bool]
    sampling: bool
    drafting: bool
    needs_audio: bool
    longest_chunk: float

    @property
    def vocabulary(self) -> Vocabulary | None: ...

    def decode(self, chunks: Iterable[AudioChunk], batch_size: int) -> Iterator[Decoded]:
        """The texts of chunks in their order, some at a time: each is what the chunk gives alone.

        Args:
            chunks: no more are asked for than are decoded together.
            batch_size: that number.

        Raises:
            ContextLengthError: a chunk is too long for the model.
        """
        ...

    def stream(
        self, chunk: AudioChunk, gap: str
    ) -> Generator[TranscriptionDelta, None, list[Segment]]:
        """The text of one chunk, piece by piece as each is certain; returns its segments.

        Args:
            gap: what comes before the text, if there is any.
        """
        ...


class SpeechFamily(Protocol):
    """A family's part of transcription, made of what `load` returned: `Family(model, processor)`.

    sampling_rate: of the recordings that its models were trained on, in Hz.
    ctc_vocabulary: what the labels of its CTC head mean; None without a head, or where nobody
        knows. Words have times where there is one.
    edits: whether its models edit what the CTC head writes, and may `skip_editor`.
    halo: what its chunks of a part of a recording need of what is around it.
    """

    sampling_rate: int
    edits: bool

    def __init__(self, model: Any, processor: Any): ...

    @property
    def halo(self) -> Halo: ...

    @property
    def ctc_vocabulary(self) -> Vocabulary | None: ...

    def text_language(
        self, request: TranscriptionRequest, *, for_decoder: bool = True
    ) -> str | None:
        """Code of the language that the text will be in, if the request asks for one.

        Args:
            for_decoder: the request is made to the decoder; else it only describes the text.

        Raises:
            ContextLengthError: what is asked leaves no room for a recording.
            UnsupportedOptionError: the decoder was not trained for what is asked, or no model of
                the family for the language.
        """
        ...

    def can_draft(self, request: TranscriptionRequest) -> bool:
        """Whether a CTC head may write what the request asks for, punctuation included if that is
        asked for."""
        ...

    def decoder(self, how: Decoding) -> ChunkDecoder:
        """What makes segments of this family's chunks.

        Raises:
            InputError: an option is unknown, or contradicts another.
            UnsupportedOptionError: the model cannot do what is asked.
        """
        ...

    def chunks(
        self,
        recording: Recording,
        options: ChunkOptions,
        *,
        for_alignment: bool,
        drafts: bool,
        for_decoder: bool,
        part: Part = WHOLE,
    ) -> Iterator[AudioChunk | None]:
        """The recording in order, cut where nobody speaks; what has no speech is left out.

        Yields:
            A chunk, or None where a part of the recording has been gone through: who transcribes
            several recordings at a time may turn to another then.

        Args:
            for_alignment: give the CTC logits and levels that word times follow from.
            drafts: give what the CTC head writes.
            for_decoder: give the audio that the decoder needs.
            part: give the chunks of this part alone: those that it has of the whole.
        """
        ...

    def live_encoder(self) -> LiveEncoder:
        """What encodes audio that is still coming in, and writes at once what is said in it.

        Raises:
            UnsupportedOptionError: there is no CTC head that could.
        """
        ...


class GenerativeFamily(SpeechFamily, Protocol):
    """A family whose models write token by token."""

    def chunk_inputs(
        self, chunks: Sequence[AudioChunk], request: TranscriptionRequest
    ) -> dict[str, Any]:
        """What `generate` needs to decode a batch of chunks, made `for_decoder`."""
        ...
