"""Wyoming, with its own client."""

from __future__ import annotations

import asyncio
import logging
import socket

import numpy as np
import pytest
from conftest import DATA
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from mlx_speech import load_audio
from mlx_speech.errors import HubError
from mlx_speech.server.app import build_app
from mlx_speech.server.engine import Engine
from mlx_speech.server.models import ModelStore
from mlx_speech.server.wyoming import wyoming

NAME = "tiny"
SENTENCE = "set the kitchen to thirty degrees"
FORMAT = {"rate": 16000, "width": 2, "channels": 1}


def recording(name: str, silence: float = 0.0) -> bytes:
    samples = np.array(load_audio(DATA / "audio" / f"{name}.flac"))
    samples = np.concatenate([samples, np.zeros(int(silence * 16000))])
    return (samples * 32767).astype("<i2").tobytes()


def run(tiny, work, loader=None, names=(NAME,), **options):
    """What `work(connect, engine)` returns; `connect()` gives a client."""

    async def main():
        engine = Engine(ModelStore(names, loader=loader or (lambda name: tiny)), **options)
        engine.start()
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        try:
            async with asyncio.timeout(60), wyoming(engine, listener):
                return await work(lambda: AsyncTcpClient(*address, read_timeout=60), engine)
        finally:
            await engine.stop()
            listener.close()

    return asyncio.run(main())


async def send_audio(client, data: bytes, size: int = 2048, **audio_format) -> None:
    audio_format = {**FORMAT, **audio_format}
    await client.write_event(AudioStart(**audio_format).event())
    for start in range(0, len(data), size):
        chunk = AudioChunk(**audio_format, audio=data[start : start + size])
        await client.write_event(chunk.event())
    await client.write_event(AudioStop().event())


async def events_until(client, *kinds) -> list[Event]:
    events = []
    while not events or not any(kind.is_type(events[-1].type) for kind in kinds):
        events.append(await client.read_event())
        assert events[-1] is not None
    return events


async def transcript(client) -> Transcript:
    """What an utterance ends with."""
    events = await events_until(client, TranscriptStop)
    return Transcript.from_event(events[-2])


def test_info(tiny, tiny_s2t):
    """Of models that transcribe live audio; one that cannot be loaded hinders no other."""

    def loader(name):
        if name == "broken":
            raise HubError("no network")
        return tiny_s2t if name == "s2t" else tiny

    async def work(connect, engine):
        async with connect() as client:
            await client.write_event(Describe().event())
            return Info.from_event(await client.read_event())

    (program,) = run(tiny, work, loader, ["s2t", NAME, "broken"]).asr
    assert program.supports_transcript_streaming
    (model,) = program.models
    assert model.name == NAME
    assert "fr" in model.languages


def test_a_command(tiny):
    """As Home Assistant sends it."""

    async def work(connect, engine):
        async with connect() as client:
            await client.write_event(Transcribe(language="en").event())
            await send_audio(client, recording("espeak_02"))
            return await events_until(client, TranscriptStop)

    start, chunk, whole, stop = run(tiny, work)
    assert TranscriptStart.is_type(start.type)
    assert TranscriptChunk.from_event(chunk).text == SENTENCE
    assert Transcript.from_event(whole) == Transcript(SENTENCE, language="en")
    assert TranscriptStop.is_type(stop.type)


def test_texts_come_while_somebody_speaks(tiny):
    async def work(connect, engine):
        async with connect() as client:
            await client.write_event(AudioStart(**FORMAT).event())
            for name in ("espeak_02", "flite_08"):
                chunk = AudioChunk(**FORMAT, audio=recording(name, silence=1))
                await client.write_event(chunk.event())
            before = [await client.read_event() for _ in range(3)]
            await client.write_event(AudioStop().event())
            return before, await transcript(client)

    before, whole = run(tiny, work)
    texts = [TranscriptChunk.from_event(event).text for event in before[1:]]
    assert texts == [SENTENCE, " unlock the back gate"]
    assert whole.text == "".join(texts)


@pytest.mark.parametrize(
    "audio_format",
    [
        {"width": 4, "channels": 1},
        {"width": 3, "channels": 2},
        {"width": 2, "channels": 2},
        {"width": 1, "channels": 1},
    ],
)
def test_formats(tiny, audio_format):
    samples = np.frombuffer(recording("espeak_02"), "<i2").repeat(audio_format["channels"])
    wide = (samples.astype("<i4") << 16).view(np.uint8).reshape(-1, 4)
    data = wide[:, 4 - audio_format["width"] :].copy()
    if audio_format["width"] == 1:
        data ^= 128

    async def work(connect, engine):
        async with connect() as client:
            await send_audio(client, data.tobytes(), 24_000, **audio_format)
            return await transcript(client)

    assert run(tiny, work).text == SENTENCE


def test_silence(tiny):
    async def work(connect, engine):
        async with connect() as client:
            await send_audio(client, bytes(32_000))
            return [event.type for event in await events_until(client, TranscriptStop)]

    assert run(tiny, work) == ["transcript-start", "transcript", "transcript-stop"]


def test_several_clients_and_utterances(tiny):
    async def speak(client, name):
        await send_audio(client, recording(name))
        return (await transcript(client)).text

    async def work(connect, engine):
        async with connect() as one, connect() as other:
            together = await asyncio.gather(speak(one, "espeak_02"), speak(other, "flite_08"))
            return [*together, await speak(one, "flite_08")]

    assert run(tiny, work) == [SENTENCE, "unlock the back gate", "unlock the back gate"]


def test_ping_and_what_is_not_known(tiny):
    async def work(connect, engine):
        async with connect() as client:
            await client.write_event(Event("select-program", {"name": "mlx-speech"}))
            await client.write_event(Ping("hello").event())
            return Pong.from_event(await client.read_event())

    assert run(tiny, work).text == "hello"


WRONG = {
    "model": ([Transcribe(name="whisper").event()], "there is no model 'whisper'"),
    "language": ([Transcribe(language="tlh").event()], "tlh"),
    "names": ([Event("transcribe", {"transcript_names": "Ada"})], "transcript_names"),
    "keywords": ([Transcribe(transcript_names=["Ada"]).event()], "keywords"),
    "rate": ([AudioStart(96000, 2, 1).event()], "rate is 96000"),
    "width": ([AudioStart(16000, 8, 1).event()], "width is 8"),
    "nothing": ([Event("audio-start")], "width is None"),
    "twice": ([AudioStart(**FORMAT).event()], "before the audio-stop"),
}


@pytest.mark.parametrize(("before", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_told_once(tiny, before, message):
    async def work(connect, engine):
        async with connect() as client:
            for event in before:
                await client.write_event(event)
            await send_audio(client, recording("espeak_02"))
            error = Error.from_event(await client.read_event())
            await send_audio(client, recording("espeak_02"))
            return error, await transcript(client), engine.requests

    error, after, requests = run(tiny, work)
    assert message in error.text
    assert after.text == SENTENCE
    assert requests == 0


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (AudioChunk(**FORMAT, audio=b"123").event(), "no whole samples"),
        (AudioChunk(8000, 2, 1, audio=b"12").event(), "another format"),
        (Event("audio-chunk"), "width is None"),
    ],
)
def test_chunks_that_are_wrong(tiny, event, message):
    async def work(connect, engine):
        async with connect() as client:
            await client.write_event(AudioStart(**FORMAT).event())
            await client.write_event(event)
            await client.write_event(event)
            await client.write_event(AudioStop().event())
            await client.write_event(AudioStop().event())
            return [Error.from_event(await client.read_event()).text for _ in range(2)]

    first, second = run(tiny, work)
    assert message in first
    assert second == "audio begins with audio-start"


def test_no_place(tiny):
    async def work(connect, engine):
        async with engine.place(), connect() as client:
            await client.write_event(AudioStart(**FORMAT).event())
            return Error.from_event(await client.read_event())

    assert run(tiny, work, max_requests=1).code == "rate_limit_exceeded"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\n",
        b"[]\n",
        b"{}\n",
        b'{"type": "ping", "data_length": "x"}\n',
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
        b'{"type": "audio-start", "data": [], "data_length": 2}\n{}',
        b"x" * 100_000,
    ],
)
def test_what_is_no_event_ends_the_connection(tiny, garbage, caplog):
    """And the next client is served."""

    async def work(connect, engine):
        async with connect() as client:
            client._writer.write(garbage)
            assert await client.read_event() is None
        async with connect() as client:
            await client.write_event(Ping("hello").event())
            return Pong.from_event(await client.read_event())

    assert run(tiny, work).text == "hello"
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_one_that_is_gone_frees_its_place_and_the_model(tiny, caplog):
    async def work(connect, engine):
        async with connect() as client:
            await client.write_event(AudioStart(**FORMAT).event())
            await client.write_event(AudioChunk(**FORMAT, audio=bytes(3200)).event())
            while engine.requests == 0:
                await asyncio.sleep(0.01)
            client._writer.write(b'{"type": "audio-chunk", "payload_length": 1000}\nx')
        while engine.requests:
            await asyncio.sleep(0.01)
        return engine.models.users(NAME)

    assert run(tiny, work) == 0
    assert caplog.records == []


@pytest.mark.parametrize("half", [b"", b'{"type": "audio-chunk", "payload_length": 10}\n12'])
def test_one_that_says_nothing_is_given_up(tiny, monkeypatch, half):
    monkeypatch.setattr("mlx_speech.server.wyoming._IDLE_SECONDS", 0.1)

    async def work(connect, engine):
        async with connect() as client:
            await client.write_event(AudioStart(**FORMAT).event())
            client._writer.write(half)
            assert await client.read_event() is None
        return engine.requests

    assert run(tiny, work) == 0


def test_the_end_finishes_what_is_worked_on(tiny):
    """And waits for nobody."""

    async def main():
        engine = Engine(ModelStore([NAME], loader=lambda name: tiny))
        engine.start()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with (
                AsyncTcpClient(*listener.getsockname(), read_timeout=60) as speaks,
                AsyncTcpClient(*listener.getsockname(), read_timeout=60) as waits,
            ):
                async with wyoming(engine, listener):
                    await waits.write_event(AudioStart(**FORMAT).event())
                    await send_audio(speaks, recording("espeak_02"), 1 << 20)
                    await events_until(speaks, TranscriptStart)
                assert await waits.read_event() is None
                text = (await transcript(speaks)).text
                assert await speaks.read_event() is None
            assert engine.requests == 0
        await engine.stop()
        return text

    assert asyncio.run(main()) == SENTENCE


def test_beside_the_routes(tiny):
    """From the start of the application to its end."""

    async def main():
        engine = Engine(ModelStore([NAME], loader=lambda name: tiny))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            app = build_app(engine, beside=wyoming(engine, listener))
            client = AsyncTcpClient(*listener.getsockname(), read_timeout=60)
            async with client, app.router.lifespan_context(app):
                await send_audio(client, recording("espeak_02"))
                return (await transcript(client)).text

    assert asyncio.run(main()) == SENTENCE
