"""Wyoming, the protocol of Home Assistant's voice assistants: events over TCP.

It knows no key: whoever reaches the address that the server is bound to may use it.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, NamedTuple

from wyoming.asr import (
    Transcribe,
    Transcript,
    TranscriptChunk,
    TranscriptStart,
    TranscriptStop,
)
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler

from .. import __version__
from ..errors import InputError, MlxSpeechError
from ..fields import fitted
from ..processing.request import TranscriptionRequest
from ..transcription.live import LiveEvent
from .capabilities import capabilities
from .engine import Engine
from .errors import as_request_error
from .live import MAX_AUDIO_BYTES, LiveStream, live_stream
from .raw_audio import Encoding, RawFormat, SamplingRate
from .reply import StoppedError

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 600
_ENCODINGS: dict[int, Encoding] = {1: "u8", 2: "s16", 3: "s24", 4: "s32"}


@asynccontextmanager
async def wyoming(engine: Engine, listener: socket.socket) -> AsyncIterator[None]:
    """Around the time in which clients are served.

    Args:
        listener: listens to them.
    """
    models = _Models(engine)
    connections: dict[asyncio.Task, _Connection] = {}

    loop = asyncio.get_running_loop()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(engine, models, reader, writer)
        task = loop.create_task(connection.run())
        connections[task] = connection
        task.add_done_callback(connections.pop)

    server = await loop.create_server(
        lambda: asyncio.StreamReaderProtocol(_Reader(loop=loop), connected, loop=loop),
        sock=listener,
    )
    try:
        yield
    finally:
        server.close()
        for task, connection in connections.items():
            if not connection.ends_soon():
                task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


class _Reader(asyncio.StreamReader):
    """Takes no more at once than an event may have, and waits for none for ever."""

    async def readline(self) -> bytes:
        async with asyncio.timeout(_IDLE_SECONDS):
            return await super().readline()

    async def readexactly(self, n: int) -> bytes:
        if n > MAX_AUDIO_BYTES:
            raise ValueError(f"an event of {n} bytes is too long")
        async with asyncio.timeout(_IDLE_SECONDS):
            return await super().readexactly(n)


class _Models:
    """What clients are told of the models."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._languages: dict[str, list[str]] = {}

    async def info(self) -> Info:
        """Those that transcribe live audio; each is loaded once to learn what it knows."""
        for name in self._engine.models.names:
            if name not in self._languages:
                try:
                    async with self._engine.lease(name) as lease:
                        self._languages[name] = await lease.call(_live_languages)
                except MlxSpeechError as error:  # the next who asks may have more luck
                    logger.warning("%s", error)
        about: dict[str, Any] = {"attribution": Attribution("mlx-speech", ""), "installed": True}
        models = [
            AsrModel(name, **about, description=name, version=None, languages=languages)
            for name, languages in self._languages.items()
            if languages
        ]
        program = AsrProgram(
            "mlx-speech",
            **about,
            description="Speech recognition with MLX",
            version=__version__,
            models=models,
            supports_transcript_streaming=True,
        )
        return Info(asr=[program])


def _live_languages(model: Any, processor: Any) -> list[str]:
    """Codes of the languages that a model knows; none where it transcribes no live audio."""
    known = capabilities(model, processor)
    return known["languages"] if known is not None and known["live"] else []


class _Utterance(NamedTuple):
    """Audio that is coming in.

    texts: of its segments so far.
    """

    live: LiveStream
    format: RawFormat
    texts: list[str]


class _Connection(AsyncEventHandler):
    """A client. Of audio with which something is wrong it gets one error, and no transcript."""

    def __init__(
        self,
        engine: Engine,
        models: _Models,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ):
        super().__init__(reader, writer)
        self._engine, self._models = engine, models
        self._working = False
        self._opened = AsyncExitStack()  # what the utterance stands on
        self._utterance: _Utterance | None = None
        self._asked: dict[str, Any] | None = None  # of the next one, as arguments of `live_stream`
        self._refused = False  # until its audio has ended

    def ends_soon(self) -> bool:
        """Have it end once an event is dealt with; whether one is."""
        self._is_running = False
        return self._working

    async def run(self) -> None:
        """Answer events until the client is gone, or sends what is none."""
        try:
            await super().run()
        except (OSError, EOFError):
            pass  # it went away in the middle of an event
        except (AttributeError, KeyError, TypeError) as error:
            logger.warning("what a Wyoming client sends is no event: %r", error)

    async def disconnect(self) -> None:
        """Give up what was begun."""
        await self._opened.aclose()

    async def handle_event(self, event: Event) -> bool:
        """Do what an event asks for; returns whether there may be another."""
        self._working = True
        try:
            await self._answer(event)
        except StoppedError:
            return False
        except ConnectionError:
            raise
        except Exception as error:
            await self._end()
            self._refused = not AudioStop.is_type(event.type)
            wrong = as_request_error(error)
            await self.write_event(Error(str(wrong), wrong.code).event())
        finally:
            self._working = False
        return True

    async def _answer(self, event: Event) -> None:
        """Likewise. Types that are not known are passed over, as the protocol wants it."""
        fitted("data", event.data, dict)
        if Describe.is_type(event.type):
            await self.write_event((await self._models.info()).event())
        elif Ping.is_type(event.type):
            await self.write_event(Pong(event.data.get("text")).event())
        elif Transcribe.is_type(event.type):
            await self._end()
            self._asked = self._arguments(Transcribe.from_event(event))
        elif self._refused:
            self._refused = not AudioStop.is_type(event.type)
        elif AudioStart.is_type(event.type):
            await self._start(_format(event))
        elif AudioChunk.is_type(event.type):
            await self._push(_format(event), event.payload or b"")
        elif AudioStop.is_type(event.type):
            await self._stop()

    def _arguments(self, asked: Transcribe) -> dict[str, Any]:
        names = fitted("transcript_names", asked.transcript_names or [], list[str])
        terms = fitted("transcript_terms", asked.transcript_terms or [], list[str])
        language = fitted("language", asked.language, str | None)
        models = self._engine.models
        return {
            "name": models.resolve(fitted("name", asked.name, str | None) or models.names[0]),
            "request": TranscriptionRequest(keywords=[*names, *terms] or None),
            "languages": [language] if language else [],
        }

    async def _start(self, audio_format: RawFormat) -> None:
        if self._utterance is not None:
            raise InputError("audio-start comes before the audio-stop of the audio before")
        asked = self._arguments(Transcribe()) if self._asked is None else self._asked
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(self._engine.place())
            stream = live_stream(self._engine, audio_format=audio_format, **asked)
            live = await opened.enter_async_context(stream)
            self._opened = opened.pop_all()
        self._utterance = _Utterance(live, audio_format, [])

    def _begun(self) -> _Utterance:
        if self._utterance is None:
            raise InputError("audio begins with audio-start")
        return self._utterance

    async def _push(self, audio_format: RawFormat, audio: bytes) -> None:
        utterance = self._begun()
        if audio_format != utterance.format:
            raise InputError("an audio-chunk is of another format than its audio-start")
        for part in utterance.live.parts(audio):
            await self._tell(utterance, await utterance.live.push(part))

    async def _stop(self) -> None:
        utterance = self._begun()
        await self._tell(utterance, await utterance.live.finish())
        if not utterance.texts:
            await self.write_event(TranscriptStart(language=utterance.live.language).event())
        text = " ".join(utterance.texts)
        await self.write_event(Transcript(text, language=utterance.live.language).event())
        await self.write_event(TranscriptStop().event())
        await self._end()

    async def _tell(self, utterance: _Utterance, events: list[LiveEvent]) -> None:
        """Segments, when nothing of them changes any more: chunks in a row are the transcript."""
        for text in (event.text for event in events if event.kind == "corrected" and event.text):
            if not utterance.texts:
                await self.write_event(TranscriptStart(language=utterance.live.language).event())
            gap = " " if utterance.texts else ""
            await self.write_event(TranscriptChunk(gap + text).event())
            utterance.texts.append(text)

    async def _end(self) -> None:
        """Nothing is asked any more."""
        await self._opened.aclose()
        self._utterance, self._asked, self._refused = None, None, False


def _format(event: Event) -> RawFormat:
    width, rate, channels = (event.data.get(name) for name in ("width", "rate", "channels"))
    encoding = _ENCODINGS[fitted("width", width, Literal[tuple(_ENCODINGS)])]
    return RawFormat(
        encoding, fitted("rate", rate, SamplingRate), fitted("channels", channels, int)
    )
