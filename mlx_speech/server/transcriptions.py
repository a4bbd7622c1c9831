"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import IO, Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import MlxSpeechError
from ..generation.protocols import Detokenizes
from ..processing.request import TranscriptionRequest
from ..transcription.transcript import Transcript
from . import answers
from .capabilities import fitted_request
from .errors import as_request_error
from .event_stream import EventStream
from .forms import read_form
from .metrics import Metrics
from .recording_task import Event
from .reply import Reply
from .transcription_form import Task, TranscriptionForm
from .work import OpenFile, working


async def transcriptions(request: Request) -> Response:
    """What was said."""
    return await _respond(request, "transcribe")


async def translations(request: Request) -> Response:
    """What was said, in English, or in another language that `target_language` says."""
    return await _respond(request, "translate")


async def _respond(request: Request, task: Task) -> Response:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(working(request))
        asked = TranscriptionForm.of(await stack.enter_async_context(read_form(request)), task)
        name = engine.models.resolve(asked.model or engine.models.names[0])
        file = OpenFile(cast(IO[bytes], asked.file.file))
        recording = await file.decoded()
        lease = await stack.enter_async_context(engine.lease(name))

        def fit(model: Any, processor: Any) -> tuple[TranscriptionRequest, _Answer]:
            try:
                fitted, language = fitted_request(
                    model,
                    processor,
                    asked.request,
                    languages=asked.languages,
                    punctuate=asked.punctuate,
                    speakers=asked.speakers,
                    words=asked.words,
                )
            except MlxSpeechError as error:
                raise as_request_error(error, keywords=asked.keywords_field) from None
            metrics = request.app.state.metrics
            return fitted, _Answer(asked, language, processor.tokenizer, metrics)

        fitted, answer = await lease.call(fit)
        arguments = {
            "request": fitted,
            "chunking": asked.chunking,
            "options": {"temperature": asked.temperature} if asked.temperature else {},
            "word_timestamps": asked.words,
            "speakers": asked.speakers,
        }
        reply = await lease.transcribe(file, recording, arguments, streaming=asked.stream)
        if asked.stream:
            return EventStream(answer.events(reply), stack.pop_all())
        return answer.response(cast(Transcript, [event async for event in reply][-1]))


@dataclass
class _Answer:
    """Makes what the client gets.

    language: code of the text's, if it is known.
    tokenizer: of the model.
    """

    asked: TranscriptionForm
    language: str | None
    tokenizer: Detokenizes
    metrics: Metrics

    def response(self, transcript: Transcript) -> Response:
        """All at once."""
        if (form := self.asked.format) in answers.TEXT_FORMATS:
            self.metrics.add_transcript(transcript)
            write, kind = answers.TEXT_FORMATS[form]
            return Response(write(transcript), media_type=kind)
        return JSONResponse(self._body(transcript))

    async def events(self, reply: Reply[Event]) -> AsyncIterator[dict[str, Any]]:
        """The API's events. There is one for each segment, whatever the format; where no speakers
        are told, their names are empty."""
        number = 0
        async for event in reply:
            if isinstance(event, Transcript):
                yield {**self._body(event), "type": "transcript.text.done"}
                return
            if event.text:
                delta = {"type": "transcript.text.delta", "delta": event.text}
                segment = {"segment_id": answers.segment_id(number)} if self.asked.speakers else {}
                yield delta | segment
            if event.segment is not None:
                yield answers.diarized_segment(event.segment, number, words=self.asked.words)
                number += 1

    def _body(self, transcript: Transcript) -> dict[str, Any]:
        self.metrics.add_transcript(transcript)
        asked = self.asked
        if asked.format == "diarized_json":
            return answers.diarized(transcript, words=asked.words)
        if asked.format == "verbose_json":
            return answers.verbose(
                transcript,
                task=asked.request.task,
                language=self.language,
                temperature=asked.temperature,
                segments=asked.segments,
                words=asked.words,
            )
        # of the last event the API has a usage by tokens only, which nobody counts here
        body = answers.plain(transcript, usage=not asked.stream)
        if asked.logprobs:
            body["logprobs"] = answers.logprobs(transcript.segments, self.tokenizer)
        return body
