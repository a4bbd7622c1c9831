"""The settings of a realtime session, as OpenAI's clients send them and are shown them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from ..errors import InputError, UnsupportedOptionError
from ..fields import Range, fit_items, fitted
from ..processing.request import TranscriptionRequest
from ..transcription.live import PREFIX_SECONDS
from ..transcription.vad import VAD_THRESHOLD
from .capabilities import prompt_terms
from .errors import RequestError
from .raw_audio import Encoding, RawFormat, SamplingRate

T = TypeVar("T")
_TurnDetection = Literal["server_vad", "semantic_vad"]
_Included = Literal["item.input_audio_transcription.logprobs"]
_INPUT = "session.audio.input"
_MEMBERS = ("format", "noise_reduction", "transcription", "turn_detection")
_ENCODINGS: dict[str, Encoding] = {
    "audio/pcm": "s16",
    "audio/pcmu": "mulaw",
    "audio/pcma": "alaw",
}
#: for how many seconds each waits at most, which is what there is without a model that tells
#: whether a sentence is finished
_EAGERNESS_SECONDS = {"low": 8.0, "medium": 4.0, "auto": 4.0, "high": 2.0}


@dataclass(frozen=True)
class AudioFormat:
    """`format`: 16-bit PCM, or G.711's mu-law (pcmu) or A-law (pcma)."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: SamplingRate | None = None

    def __post_init__(self):
        usual = 24000 if self.type == "audio/pcm" else 8000
        if self.type != "audio/pcm" and self.rate not in (None, usual):
            raise InputError.must_be(f"{_INPUT}.format.rate", self.rate, f"{usual} for {self.type}")
        object.__setattr__(self, "rate", self.rate or usual)

    @property
    def raw(self) -> RawFormat:
        """What the bytes mean."""
        assert self.rate is not None
        return RawFormat(_ENCODINGS[self.type], self.rate)


@dataclass(frozen=True)
class Transcription:
    """`transcription`: which model, and what it is told.

    delay: with `"high"` and `"xhigh"` texts wait for the decoder, and a delta is a whole segment;
        with the others they are the CTC head's, as soon as they change no more.
    """

    model: str | None = None
    language: str | None = None
    languages: Sequence[str] | None = None
    prompt: str | None = None
    keywords: Sequence[str] | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


@dataclass(frozen=True)
class ServerVAD:
    """`turn_detection`: a pause ends what somebody says. There are no answers to create, or to
    interrupt."""

    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[float, Range(0, 1)] = VAD_THRESHOLD
    prefix_padding_ms: Annotated[int, Range(0, 5000)] = round(1000 * PREFIX_SECONDS)
    silence_duration_ms: Annotated[int, Range(100, 60_000)] = 500
    create_response: Literal[False] = False
    interrupt_response: Literal[False] = False

    @property
    def live_options(self) -> dict[str, Any]:
        """Arguments of `LiveTranscriber`."""
        return {
            "vad_threshold": self.threshold,
            "prefix_padding": self.prefix_padding_ms / 1000,
            "min_silence": self.silence_duration_ms / 1000,
        }


@dataclass(frozen=True)
class SemanticVAD:
    """Likewise, by how eager to end it the client is."""

    type: Literal["semantic_vad"] = "semantic_vad"
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: Literal[False] = False
    interrupt_response: Literal[False] = False

    @property
    def live_options(self) -> dict[str, Any]:
        """Arguments of `LiveTranscriber`."""
        return {"min_silence": _EAGERNESS_SECONDS[self.eagerness]}


_TURN_DETECTIONS: dict[str, type[ServerVAD] | type[SemanticVAD]] = {
    "server_vad": ServerVAD,
    "semantic_vad": SemanticVAD,
}


@dataclass(frozen=True)
class Session:
    """All settings, at first what they are without a `session.update`.

    turn_detection: None: the client commits.
    logprobs: `include` asks for those of the tokens.
    """

    format: AudioFormat = AudioFormat()
    transcription: Transcription = Transcription()
    turn_detection: ServerVAD | SemanticVAD | None = ServerVAD()
    logprobs: bool = False

    def updated(self, data: Any) -> Self:
        """The settings after a `session.update`: members that it has not stay as they are.

        Args:
            data: its `session`.

        Raises:
            InputError: a member is not what it must be.
            UnsupportedOptionError: it asks for what is not done here.
        """
        session = _members(data, "session", ("type", "audio", "include"))
        if session.get("type", "transcription") != "transcription":
            raise InputError.must_be("session.type", session["type"], "'transcription'")
        audio = _members(session.get("audio", {}), "session.audio", ("input",))
        given = _members(audio.get("input", {}), _INPUT, _MEMBERS)
        if given.pop("noise_reduction", None) is not None:
            _refuse(f"{_INPUT}.noise_reduction", "audio is taken as it is: leave it out, or null")
        changes: dict[str, Any] = {}
        if "include" in session:
            included = fitted("session.include", session["include"], list[_Included] | None)
            changes["logprobs"] = bool(included)
        if "format" in given:
            changes["format"] = _read(AudioFormat, given["format"], "format")
        if "transcription" in given:
            old, new = asdict(self.transcription), given["transcription"]
            merged = {**old, **new} if isinstance(new, dict) else new
            changes["transcription"] = _read(Transcription, merged, "transcription")
        if "turn_detection" in given:
            changes["turn_detection"] = _read_turn_detection(given["turn_detection"])
        return replace(self, **changes)

    @property
    def live_options(self) -> dict[str, Any]:
        """Arguments of `live_stream`.

        Raises:
            InputError, RequestError: they contradict each other, or are nothing to be told.
        """
        told, turn = self.transcription, self.turn_detection
        if told.language and told.languages:
            message = "language and languages exclude each other"
            raise RequestError(message, 400, f"{_INPUT}.transcription.languages")
        keywords = [*prompt_terms(told.prompt), *(told.keywords or [])]
        return {
            "request": TranscriptionRequest(keywords=keywords or None),
            "languages": [told.language] if told.language else told.languages or [],
            **({} if turn is None else turn.live_options),
        }

    def as_json(self) -> dict[str, Any]:
        """What a client is shown."""
        turn = self.turn_detection
        shown = {
            "format": asdict(self.format),
            "noise_reduction": None,
            "transcription": asdict(self.transcription),
            "turn_detection": None if turn is None else asdict(turn),
        }
        include = list(get_args(_Included)) if self.logprobs else None
        return {"type": "transcription", "audio": {"input": shown}, "include": include}


def _read_turn_detection(data: Any) -> ServerVAD | SemanticVAD | None:
    if data is None:
        return None
    name = f"{_INPUT}.turn_detection"
    kind = fitted(f"{name}.type", _members(data, name).get("type"), _TurnDetection)
    return _read(_TURN_DETECTIONS[kind], data, "turn_detection")


def _read(kind: type[T], data: Any, name: str) -> T:
    """A member of the input's settings as a dataclass; null is what is not there."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    given = _members(data, f"{_INPUT}.{name}", known)
    told = {member: value for member, value in given.items() if value is not None}
    return kind(**fit_items(kind, told, f"{_INPUT}.{name}."))


def _members(data: Any, name: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    """A copy of an object, which has no other members than those known."""
    if not isinstance(data, dict):
        raise InputError.must_be(name, data, "an object")
    if known is not None and (unknown := data.keys() - {*known}):
        _refuse(f"{name}.{min(unknown)}", "this server knows no such setting: leave it out")
    return dict(data)


def _refuse(name: str, why: str) -> None:
    raise UnsupportedOptionError.about("{option}: {why}", option=name, why=why)
