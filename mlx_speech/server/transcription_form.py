"""The fields of a request for a transcript.

Those of OpenAI's documentation mean here:

- `language`, `languages[]`: one is told to a model that can be told, and others only have to know
  it: they detect it themselves.
- `prompt`: names and terms to expect, as `keywords[]`, with commas between them. There is no model
  here that takes up the style of a text, so that sentences are refused.
- `chunking_strategy`: recordings are always cut where nobody speaks; of `server_vad` can be chosen
  `threshold`, the probability of speech at which it begins, and `silence_duration_ms`, the pause
  that ends a segment.
- `temperature`: 0 takes the likeliest tokens, and never more than that.
- `stream`: events for `json`, `verbose_json` and `diarized_json`.

Two are ours: `punctuate`, which is true where a model can, and `target_language` of translations.
What cannot be honoured is refused, and so are fields that nobody knows.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from starlette.datastructures import UploadFile

from ..fields import Range
from ..processing.request import TranscriptionRequest
from ..transcription.chunks import ChunkOptions
from .capabilities import prompt_terms
from .errors import RequestError
from .forms import Form

Task = Literal["transcribe", "translate"]
Format = Literal["json", "text", "srt", "vtt", "verbose_json", "diarized_json"]

_TIMED: tuple[Format, ...] = ("verbose_json", "diarized_json")
_STREAMED: tuple[Format, ...] = ("json", *_TIMED)
_UNSUPPORTED = dict.fromkeys(
    ("known_speaker_names", "known_speaker_references"), "speakers are called A, B and so on"
)
#: of `server_vad`: the library's name, the unit of that, and what it must be
_CHOSEN = {
    "threshold": ("vad_threshold", 1, "a probability"),
    "silence_duration_ms": ("min_silence", 1000, "milliseconds, at least 100"),
}


@dataclass
class TranscriptionForm:
    """What a form asks for.

    model: None: the server's first one.
    request: without punctuation and the language spoken, which depend on what the model takes.
    keywords_field: where the keywords of the request come from.
    languages: that may be spoken, as they are called.
    punctuate: None: where the model can.
    words: their times are to be told; segments: likewise.
    """

    file: UploadFile
    model: str | None
    request: TranscriptionRequest
    keywords_field: str
    languages: list[str]
    punctuate: bool | None
    chunking: ChunkOptions
    temperature: float
    format: Format
    words: bool
    segments: bool
    logprobs: bool
    stream: bool

    @classmethod
    def of(cls, form: Form, task: Task) -> Self:
        """What a form has.

        Raises:
            InputError, RequestError: it has what makes no sense, or what nobody honours.
        """
        form.refuse(_UNSUPPORTED)
        answer: Format = form.value("response_format", Format) or "json"
        stream = form.value("stream", bool) or False
        if stream and answer not in _STREAMED:
            raise _goes_with("stream", _STREAMED)
        granularities = form.choices("timestamp_granularities", ("word", "segment"))
        if granularities and answer not in _TIMED:
            raise _goes_with("timestamp_granularities[]", _TIMED)
        included = form.choices("include", ("logprobs",))
        if included and answer != "json":
            raise _goes_with("include[]", ("json",))
        target = form.text("target_language") or ("en" if task == "translate" else None)
        listed, keywords = prompt_terms(form.text("prompt")), form.texts("keywords")
        asked = cls(
            form.file("file"),
            form.text("model"),
            TranscriptionRequest(task, target_language=target, keywords=listed + keywords or None),
            "keywords" if keywords else "prompt",
            _languages(form),
            form.value("punctuate", bool),
            _chunking(form),
            form.value("temperature", Annotated[float, Range(0, 1)]) or 0.0,
            answer,
            words="word" in granularities,
            segments=granularities != ["word"],
            logprobs="logprobs" in included,
            stream=stream,
        )
        form.end()
        return asked

    @property
    def speakers(self) -> bool:
        """Whether they are to be told."""
        return self.format == "diarized_json"


def _goes_with(param: str, formats: tuple[Format, ...]) -> RequestError:
    return RequestError(f"{param} goes with response_format {' or '.join(formats)}", 400, param)


def _languages(form: Form) -> list[str]:
    one, several = form.text("language"), form.texts("languages")
    if one and several:
        raise RequestError("language and languages[] exclude each other", 400, "languages[]")
    return [one] if one else several


def _chunking(form: Form) -> ChunkOptions:
    strategy = form.objects("chunking_strategy")
    kind = form.text("chunking_strategy") or strategy.pop("type", "auto")
    if kind not in ("auto", "server_vad"):
        message = f"chunking_strategy is {kind!r}, but must be 'auto' or 'server_vad'; settings "
        message += "are fields of their own, such as chunking_strategy[threshold]"
        raise RequestError(message, 400, "chunking_strategy")
    options = ChunkOptions()
    for field, value in strategy.items():
        param = f"chunking_strategy[{field}]"
        if field not in _CHOSEN:
            message = f"{param} cannot be chosen, but {' and '.join(_CHOSEN)} can"
            raise RequestError(message, 400, param)
        name, unit, what = _CHOSEN[field]
        try:
            chosen: dict[str, Any] = {name: float(value) / unit}
            options = replace(options, **chosen)
        except ValueError:
            message = f"{param} is {value!r}, but must be {what}"
            raise RequestError(message, 400, param) from None
    return options
