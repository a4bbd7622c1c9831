"""What is asked for a chat completion: OpenAI's fields, checked."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Self

from ..errors import MlxSpeechError
from ..fields import Range, fit_fields
from ..processing.chat_parts import Message
from .errors import RequestError

_MAX_STOPS = 4

#: fields that cannot change an answer
_IGNORED = {
    *("metadata", "parallel_tool_calls", "prediction", "prompt_cache_key"),
    *("prompt_cache_retention", "safety_identifier", "service_tier", "store", "user"),
}
#: fields that are not supported, and what they ask for where they ask for nothing
_NEUTRAL: dict[str, Sequence[Any]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
#: roles, and what templates call them
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

Count = Annotated[int, Range(1, 2**31 - 1)]


@dataclass(frozen=True)
class EncodedAudio:
    """A recording of a message, as it came.

    name: which one it is, for an error.
    data: a file in base64.
    """

    name: str
    data: str


@dataclass(frozen=True)
class StreamOptions:
    """Of an answer that streams.

    include_usage: whether the last event has the numbers of tokens.
    include_obfuscation: asks for padding against who watches the network; there is none.
    """

    include_usage: bool = False
    include_obfuscation: bool = False

    def __post_init__(self) -> None:
        fit_fields(self)


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """OpenAI's fields by their names there. Without a temperature, or `top_p`, the likeliest tokens
    are chosen.

    model: None: the server's first.
    messages: in the form of `processing.chat_parts`, but that recordings are `EncodedAudio`.

    Raises:
        InputError: a field is of another type or out of its range.
    """

    messages: list[dict]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Range(0, 2)] | None = None
    top_p: Annotated[float, Range(0, 1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        fit_fields(self)

    @classmethod
    def from_body(cls, body: dict[str, Any]) -> Self:
        """Of a request's body, without fields that are null.

        Raises:
            RequestError: it is wrong, or asks for what there is not.
        """
        asked = _supported(body, "", {*cls.__dataclass_fields__}, _IGNORED, _NEUTRAL)
        asked["messages"] = _messages(asked.get("messages"))
        if isinstance(options := asked.get("stream_options"), dict):
            known = {*StreamOptions.__dataclass_fields__}
            asked["stream_options"] = _made(
                StreamOptions, _supported(options, "stream_options.", known)
            )
        request = _made(cls, asked)
        if request.stream_options is not None and not request.stream:
            message = "stream_options are for answers that stream: stream must be true"
            raise RequestError(message, 400, "stream_options")
        limits = {request.max_tokens, request.max_completion_tokens} - {None}
        if len(limits) > 1:
            message = "max_tokens and max_completion_tokens are the same, but differ here"
            raise RequestError(message, 400, "max_completion_tokens")
        if len(request.stops) > _MAX_STOPS or "" in request.stops:
            message = f"stop must be at most {_MAX_STOPS} texts, none of them empty"
            raise RequestError(message, 400, "stop")
        return request

    @property
    def limit(self) -> int | None:
        """On the tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def options(self) -> dict[str, Any]:
        """Those of `generate` that come to the same, but for its length."""
        options: dict[str, Any] = {"stop_strings": self.stops} if self.stops else {}
        temperature, top_p = self.temperature, self.top_p
        if temperature is None:
            temperature = 0 if top_p in (None, 1) else 1
        if not temperature or top_p == 0:  # the likeliest, whatever else is said
            return options
        seed = None if self.seed is None else self.seed % 2**64
        return options | {"temperature": temperature, "top_p": top_p, "seed": seed}


def _made(kind: Any, fields: dict[str, Any]) -> Any:
    try:
        return kind(**fields)
    except MlxSpeechError as error:
        raise RequestError(str(error), 400, error.option or None) from None


def _supported(
    given: dict[str, Any],
    prefix: str,
    known: set[str],
    ignored: Collection[str] = (),
    neutral: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The fields of an object that mean something here. Others must be null, or `ignored`, or ask
    for what is done anyway.

    Raises:
        RequestError: one is not, and says which.
    """
    for name in given.keys() - known - {*ignored}:
        value = given[name]
        if value is None or any(value == each for each in neutral.get(name, ([],))):
            continue
        what = "is not supported" if name in neutral else "is no field that this server knows"
        raise RequestError(f"{prefix}{name} {what}", 400, f"{prefix}{name}", "unsupported_field")
    return {name: given[name] for name in given.keys() & known if given[name] is not None}


def _messages(given: Any) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise RequestError("messages must be a list of one or more", 400, "messages")
    return [_message(f"messages[{number}]", message) for number, message in enumerate(given)]


def _message(place: str, message: Any) -> Message:
    if not isinstance(message, dict):
        raise RequestError(f"{place} must be an object with role and content", 400, place)
    known = _supported(message, f"{place}.", {"role", "content"})
    role, content = known.get("role"), known.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        wrong = f"{place}.role must be one of {', '.join(_ROLES)}: there are no tools"
        raise RequestError(wrong, 400, f"{place}.role")
    if not isinstance(content, str):
        if not isinstance(content, list) or not content:
            wrong = f"{place}.content must be text, or a list of parts"
            raise RequestError(wrong, 400, f"{place}.content")
        parts = enumerate(content)
        content = [_part(f"{place}.content[{i}]", part, role) for i, part in parts]
    return {"role": _ROLES[role], "content": content}


def _part(place: str, part: Any, role: str) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        text = _supported(part, f"{place}.", {"type", "text"}).get("text")
        if isinstance(text, str):
            return {"type": "text", "text": text}
        raise RequestError(f"{place}.text must be text", 400, f"{place}.text")
    if kind != "input_audio":
        message = f"{place}.type must be text or input_audio"
        raise RequestError(message, 400, f"{place}.type")
    if role != "user":
        message = f"{place}: only a user's message can have a recording"
        raise RequestError(message, 400, place)
    audio = _supported(part, f"{place}.", {"type", "input_audio"}).get("input_audio")
    place = f"{place}.input_audio"
    fields = _supported(audio, f"{place}.", {"data", "format"}) if isinstance(audio, dict) else {}
    data, form = fields.get("data"), fields.get("format", "")
    if not isinstance(data, str) or not isinstance(form, str):
        wrong = f"{place} must be an object with data and format, both text"
        raise RequestError(wrong, 400, place)
    return {"type": "audio", "audio": EncodedAudio(place, data)}
