"""`WS /v1/realtime?intent=transcription`: OpenAI's events over a WebSocket, with one of our own.

A `mlx_speech.partial` {event_id, item_id, text} has what comes after the deltas of its item so far,
in place of the last one: it may change until a delta has it, or the item is completed.
"""

import base64
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..transcription.live import LiveEvent
from .engine import BusyError, Engine
from .errors import RequestError, as_request_error, error_response
from .json_body import parse_json
from .live import MAX_AUDIO_BYTES, LiveStream, live_stream
from .models import UnknownModelError
from .realtime_items import Conversation, new_id
from .realtime_session import Session, Transcription
from .reply import StoppedError

logger = logging.getLogger(__name__)

SUBPROTOCOL = "realtime"
#: Options of uvicorn. Messages a little longer than allowed get an answer and not the end of the
#: connection. While one is worked on, and be it a model that loads, no pongs are read.
WEBSOCKET_OPTIONS: Mapping[str, Any] = {"ws_max_size": 2 * MAX_AUDIO_BYTES, "ws_ping_timeout": 600}
_SHUTTING_DOWN = 1012  # of the closing codes, "service restart"


async def realtime(websocket: WebSocket) -> None:
    """Transcribe what a client sends while it sends it."""
    engine: Engine = websocket.app.state.engine
    async with AsyncExitStack() as stack:
        try:
            model = _model_asked(websocket, engine)
            await stack.enter_async_context(engine.place())
        except (RequestError, UnknownModelError, BusyError) as error:
            await websocket.send_denial_response(await error_response(websocket, error))
            return
        offered = websocket.scope["subprotocols"]
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        connection = await stack.enter_async_context(_Connection(websocket, engine, model))
        with suppress(WebSocketDisconnect):  # nobody is there any more
            try:
                await connection.run()
            except StoppedError:
                await websocket.close(_SHUTTING_DOWN)


def _model_asked(websocket: WebSocket, engine: Engine) -> str:
    """The model to begin with."""
    if websocket.query_params.get("intent") != "transcription":
        message = "this server transcribes only: connect to /v1/realtime?intent=transcription"
        raise RequestError(message, 400, "intent", "invalid_value")
    return engine.models.resolve(websocket.query_params.get("model") or engine.models.names[0])


class _Connection:
    """A client, whose messages are dealt with one after the other."""

    def __init__(self, websocket: WebSocket, engine: Engine, model: str):
        self._websocket, self._engine = websocket, engine
        self._id = new_id("sess")
        self._session = Session(transcription=Transcription(model))
        self._conversation = Conversation(self._send)
        self._live: LiveStream | None = None
        self._opened = AsyncExitStack()  # what `_live` stands on
        self._answers: dict[Any, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }

    async def __aenter__(self) -> "_Connection":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._opened.aclose()

    async def run(self) -> None:
        """Answer messages until the client is gone."""
        await self._send("session.created", session=self._shown)
        while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
            await self._answer(message.get("text") or message.get("bytes") or "")

    async def _answer(self, message: str | bytes) -> None:
        """Do what a message asks for; what is wrong with it is told, and the next may be right."""
        event: dict[str, Any] = {}
        try:
            event = _parsed(message)
            kind = event.get("type")
            if not isinstance(kind, str) or kind not in self._answers:
                known = ", ".join(self._answers)
                problem = f"the type of a message must be one of {known}, but is {kind!r}"
                raise RequestError(problem, param="type", code="invalid_value")
            await self._answers[kind](event)
        except (WebSocketDisconnect, StoppedError):
            raise
        except Exception as error:
            about = {"event_id": event.get("event_id")}
            await self._send("error", error={**as_request_error(error).body, **about})

    async def _send(self, kind: str, **members: Any) -> None:
        # in ASCII, for what clients wrote need not be text that could be encoded
        event = json.dumps({"type": kind, "event_id": new_id("event"), **members})
        await self._websocket.send_text(event)

    @property
    def _shown(self) -> dict[str, Any]:
        """The session, as a client sees it."""
        about = {"id": self._id, "object": "realtime.transcription_session"}
        return {**about, **self._session.as_json()}

    async def _update(self, event: dict[str, Any]) -> None:
        session = self._session.updated(event.get("session"))
        if session != self._session or self._live is None:
            await self._open(session)
        await self._send("session.updated", session=self._shown)

    async def _open(self, session: Session) -> LiveStream:
        """Transcribe with these settings from now on."""
        models, options = self._engine.models, session.live_options
        name = models.resolve(session.transcription.model or models.names[0])
        stream = live_stream(self._engine, name, session.format.raw, **options)
        async with AsyncExitStack() as opened:
            live = await opened.enter_async_context(stream)
            if self._live is not None:
                ending, self._live = self._live, None  # it takes no more audio, even if this fails
                await self._advance(ending.finish())
            await self._opened.aclose()
            self._live, self._opened = live, opened.pop_all()
        self._session, conversation = session, self._conversation
        conversation.origin = conversation.seconds
        conversation.detects_turns = session.turn_detection is not None
        conversation.waits = session.transcription.delay in ("high", "xhigh")
        conversation.tokenizer = live.tokenizer if session.logprobs else None
        return live

    async def _append(self, event: dict[str, Any]) -> None:
        audio = _decoded(event.get("audio"))
        live = self._live or await self._open(self._session)
        for part in live.parts(audio):
            self._conversation.append(live.seconds(part))
            await self._advance(live.push(part))

    async def _commit(self, event: dict[str, Any]) -> None:
        if self._live is None or self._conversation.is_empty:
            message = "there is no audio to commit: append some first"
            raise RequestError(message, code="input_audio_buffer_commit_empty")
        latest = self._conversation.latest
        await self._advance(self._live.commit())
        if self._conversation.latest == latest:
            await self._conversation.commit()

    async def _clear(self, event: dict[str, Any]) -> None:
        if self._live is not None:
            await self._live.clear()
        self._conversation.clear()
        await self._send("input_audio_buffer.cleared")

    async def _advance(self, step: Awaitable[list[LiveEvent]]) -> None:
        """Tell what becomes known; what fails is the open item, if there is one."""
        try:
            events = await step
        except StoppedError:
            raise
        except Exception as error:
            if not self._conversation.has_open_item:
                raise
            await self._conversation.fail(error)
            return
        for event in events:
            await self._conversation.tell(event)


def _parsed(message: str | bytes) -> dict[str, Any]:
    """The event of a message."""
    try:
        event = parse_json(message)
    except RequestError as error:
        raise RequestError(str(error), code="invalid_json") from None
    if not isinstance(event.get("event_id"), str | None):
        raise RequestError("an event_id must be text", param="event_id", code="invalid_value")
    return event


def _decoded(audio: Any) -> bytes:
    """The bytes of Base64."""
    if not isinstance(audio, str):
        raise RequestError("audio must be text in Base64", param="audio", code="invalid_value")
    if len(audio) > -(-MAX_AUDIO_BYTES // 3) * 4:
        problem = f"audio must be at most {MAX_AUDIO_BYTES >> 20} MiB a message: send it in parts"
        raise RequestError(problem, param="audio", code="audio_too_long")
    try:
        return base64.b64decode(audio, validate=True)
    except ValueError:
        raise RequestError("audio is no Base64", param="audio", code="invalid_value") from None
