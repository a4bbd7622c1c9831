"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Self, cast

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..fields import Range
from ..processing.request import TranscriptionRequest
from ..transcription.chunks import ChunkOptions
from ..transcription.transcript import Transcript
from . import answers
from .capabilities import fitted_request
from .engine import Reply
from .errors import RequestError
from .event_stream import EventStream
from .forms import Form, read_form
from .metrics import Metrics
from .recording_task import Event
from .work import opened, uploaded, working

_FORMATS = ("json", "text", "srt", "vtt", "verbose_json", "diarized_json")
_FIELDS = (
    *("file", "model", "language", "languages", "target_language", "prompt", "keywords"),
    *("punctuate", "response_format", "temperature", "timestamp_granularities", "include"),
    *("chunking_strategy", "stream"),
)
_UNSUPPORTED = {
    "known_speaker_names": "speakers are called A, B and so on",
    "known_speaker_references": "speakers are called A, B and so on",
}
_LONGEST_TERM_WORDS = 5


@dataclass
class Asked:
    """What a form asks for.

    request: without punctuation and the language spoken, which depend on what the model takes.
    languages: that may be spoken.
    punctuate: None: where the model can.
    """

    file: UploadFile
    model: str | None
    request: TranscriptionRequest
    chunking: ChunkOptions
    languages: list[str]
    punctuate: bool | None
    format: str
    granularities: list[str]
    temperature: float
    stream: bool

    @classmethod
    def of(cls, form: Form, task: Literal["transcribe", "translate"]) -> Self:
        """What a form has.

        Raises:
            InputError, RequestError: it has what makes no sense, or what nobody honours.
        """
        form.refuse(_UNSUPPORTED)
        target = form.text("target_language")
        request = TranscriptionRequest(
            task,
            target_language=target or ("en" if task == "translate" else None),
            keywords=[*_terms(form.text("prompt")), *form.texts("keywords")] or None,
        )
        asked = cls(
            form.file("file"),
            form.text("model"),
            request,
            _chunking(form),
            _languages(form),
            form.value("punctuate", bool),
            form.value("response_format", Literal[_FORMATS]) or "json",
            form.texts("timestamp_granularities"),
            form.value("temperature", Annotated[float, Range(0, 1)]) or 0.0,
            form.value("stream", bool) or False,
        )
        asked._check()
        form.end(_FIELDS)
        return asked

    def _check(self) -> None:
        for granularity in self.granularities:
            if granularity not in ("word", "segment"):
                message = f"timestamp_granularities[] is {granularity!r}, but word or segment"
                raise RequestError(message, 400, "timestamp_granularities[]")
        timed = self.format in ("verbose_json", "diarized_json")
        if self.granularities and not timed:
            message = "timestamp_granularities[] goes with response_format verbose_json"
            raise RequestError(message, 400, "timestamp_granularities[]")
        if self.stream and self.format in answers.TEXT_FORMATS:
            message = "stream goes with response_format json, verbose_json or diarized_json"
            raise RequestError(message, 400, "stream")

    @property
    def speakers(self) -> bool:
        """Whether they are to be told."""
        return self.format == "diarized_json"

    @property
    def words(self) -> bool:
        """Whether their times are."""
        return "word" in self.granularities


async def transcriptions(request: Request) -> Response:
    """What was said."""
    return await _answer(request, "transcribe")


async def translations(request: Request) -> Response:
    """What was said, in English, or in another language that `target_language` says."""
    return await _answer(request, "translate")


async def _answer(request: Request, task: Literal["transcribe", "translate"]) -> Response:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(working(request))
        asked = Asked.of(await stack.enter_async_context(read_form(request)), task)
        name = engine.models.resolve(asked.model or engine.models.names[0])
        file = stack.enter_context(uploaded(asked.file))
        recording = stack.enter_context(await opened(file))
        lease = await stack.enter_async_context(engine.lease(name))
        fit = partial(
            fitted_request,
            request=asked.request,
            languages=asked.languages,
            punctuate=asked.punctuate,
            speakers=asked.speakers,
            words=asked.words,
        )
        fitted, language = await lease.call(fit)
        arguments = {
            "request": fitted,
            "chunking": asked.chunking,
            "options": {"temperature": asked.temperature} if asked.temperature else {},
            "word_timestamps": asked.words,
            "speakers": asked.speakers,
        }
        reply = await lease.transcribe(file, recording, arguments, streaming=asked.stream)
        if asked.stream:
            events = _events(reply, asked, language, request.app.state.metrics)
            return EventStream(events, stack.pop_all())
        transcript = cast(Transcript, [event async for event in reply][-1])
        request.app.state.metrics.add_transcript(transcript)
        return _response(transcript, asked, language)


async def _events(
    reply: Reply[Event], asked: Asked, language: str | None, metrics: Metrics
) -> AsyncIterator[dict[str, Any]]:
    """The events of the API. There is one for each segment, whatever the model; where it has no
    speakers, their names are empty."""
    number = 0
    async for event in reply:
        if isinstance(event, Transcript):
            metrics.add_transcript(event)
            yield {**_body(event, asked, language), "type": "transcript.text.done"}
            return
        if event.text:
            delta = {"type": "transcript.text.delta", "delta": event.text}
            yield {**delta, "segment_id": answers.segment_id(number)} if asked.speakers else delta
        if event.segment is not None:
            yield answers.diarized_segment(event.segment, number, asked.words)
            number += 1


def _response(transcript: Transcript, asked: Asked, language: str | None) -> Response:
    if asked.format in answers.TEXT_FORMATS:
        write, kind = answers.TEXT_FORMATS[asked.format]
        return Response(write(transcript), media_type=kind)
    return JSONResponse(_body(transcript, asked, language))


def _body(transcript: Transcript, asked: Asked, language: str | None) -> dict[str, Any]:
    if asked.format == "json":
        return answers.plain(transcript)
    if asked.format == "diarized_json":
        return answers.diarized(transcript, words=asked.words)
    return answers.verbose(
        transcript,
        task=asked.request.task,
        language=language,
        temperature=asked.temperature,
        segments=asked.granularities != ["word"],
        words=asked.words,
    )


def _languages(form: Form) -> list[str]:
    one, several = form.text("language"), form.texts("languages")
    if one and several:
        raise RequestError("language and languages[] exclude each other", 400, "languages[]")
    return [one] if one else several


def _chunking(form: Form) -> ChunkOptions:
    """`auto`, or `server_vad` with the pause that ends a segment."""
    kind = form.text("chunking_strategy")
    strategy = form.objects("chunking_strategy")
    kind = strategy.pop("type", kind)
    if kind not in (None, "auto", "server_vad"):
        message = f"chunking_strategy is {kind!r}, but must be 'auto' or of type 'server_vad'"
        raise RequestError(message, 400, "chunking_strategy")
    silence = strategy.pop("silence_duration_ms", None)
    for name in strategy:
        param = f"chunking_strategy[{name}]"
        message = f"{param} is nothing that can be chosen; silence_duration_ms is"
        raise RequestError(message, 400, param, "unsupported_parameter")
    if silence is None:
        return ChunkOptions()
    try:
        return ChunkOptions(min_silence=float(silence) / 1000)
    except ValueError:
        param = "chunking_strategy[silence_duration_ms]"
        message = f"{param} is {silence!r}, but must be milliseconds, at least 100"
        raise RequestError(message, 400, param) from None


def _terms(prompt: str | None) -> list[str]:
    """A prompt as the terms that it lists, which is what models were trained on: there are none who
    take the style of a text.

    Raises:
        RequestError: it has sentences.
    """
    parts = re.split(r"[,;\n]", (prompt or "").strip().removesuffix("."))
    terms = [" ".join(part.split()) for part in parts if part.strip()]
    if any(len(term.split()) > _LONGEST_TERM_WORDS or ". " in term for term in terms):
        message = "prompt must be names and terms to expect, with commas between them: models here "
        message += "take no sentences"
        raise RequestError(message, 400, "prompt")
    return terms
