"""Rank 0 and another rank in one process: who works on what, and what each tells the other."""

from __future__ import annotations

import asyncio
import errno
import io
import queue
import tempfile
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import DATA

from mlx_speech.audio import open_recording
from mlx_speech.distributed.bus import Message
from mlx_speech.errors import (
    AudioError,
    CheckpointError,
    DistributedError,
    HubError,
    InputError,
    UnsupportedOptionError,
)
from mlx_speech.processing.request import TranscriptionRequest
from mlx_speech.server import dispatcher as dispatcher_module
from mlx_speech.server.dispatcher import Dispatcher
from mlx_speech.server.engine import Engine
from mlx_speech.server.errors import as_request_error
from mlx_speech.server.models import ModelStore, UnknownModelError
from mlx_speech.server.rank_messages import error_from_json, error_to_json
from mlx_speech.server.reply import StoppedError
from mlx_speech.server.work import OpenFile
from mlx_speech.server.worker import Worker
from mlx_speech.transcription.chunks import ChunkOptions

NAME = "tiny"
AUDIO = DATA / "audio"
TO_FRENCH = TranscriptionRequest("translate", target_language="fr")
LONG, SHORT = AUDIO / "long.flac", AUDIO / "flite_11.flac"


class LocalBus:
    """What one rank has of a bus in this process."""

    def __init__(self, rank, buses):
        self.group = SimpleNamespace(rank=rank, size=2)
        self.inbox, self._buses = queue.Queue(), buses
        buses.append(self)

    def post(self, content, data=b""):
        for bus in self._buses:
            bus.inbox.put(Message(self.group.rank, content, data))

    def receive(self, timeout=None):
        received = self.inbox.get(timeout=120)
        if isinstance(received, DistributedError):
            raise received
        return received


class Ranks:
    """Two of them, of which the other one has a store of its own."""

    def __init__(self, loader, other_loader):
        buses = []
        self.bus, self.other_bus = LocalBus(0, buses), LocalBus(1, buses)
        self.store, self.other_store = (
            ModelStore([NAME], None, loader),
            ModelStore([NAME], None, other_loader),
        )
        self.dispatcher = Dispatcher(self.bus)
        self.engine = Engine(self.store, dispatcher=self.dispatcher)
        self.other_engine = Engine(self.other_store)
        self.worker = Worker(self.other_bus, self.other_engine)

    @asynccontextmanager
    async def running(self):
        self.engine.start()
        other = asyncio.create_task(self.worker.run_here())
        yield
        await self.engine.stop()
        await other

    @asynccontextmanager
    async def reply(self, path, streaming=False, **arguments):
        """Of the other rank, as rank 0 has something to do."""
        with self.dispatcher.work(0.001) as rank, open(path, "rb") as opened:
            assert rank == 0
            async with self.engine.lease(NAME) as lease:
                file = OpenFile(opened)
                recording = await file.decoded()
                reply = await lease.transcribe(file, recording, arguments, streaming=streaming)
                assert self.dispatcher.seconds[1] == recording.duration
                yield reply
        assert self.dispatcher.seconds == [0, 0]

    async def events(self, path, streaming=False, **arguments):
        async with self.reply(path, streaming, **arguments) as reply:
            return [event async for event in reply]

    async def settled(self):
        """When the other rank has nothing to do any more."""
        while self.other_store.users(NAME) or self.other_engine._batches or self.worker._work:
            await asyncio.sleep(0.01)


@pytest.fixture
def run(tiny):
    """What `work(ranks)` returns, a coroutine."""

    def run(work, other_loader=lambda name: tiny):
        async def main():
            ranks = Ranks(lambda name: tiny, other_loader)
            async with ranks.running():
                return await asyncio.wait_for(work(ranks), 120)

        return asyncio.run(main())

    return run


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Six sentences."""
    samples, rate = soundfile.read(LONG, dtype="int16")
    path = tmp_path_factory.mktemp("audio") / "talk.flac"
    soundfile.write(path, samples[: 21 * rate], rate)
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("asked", [{"word_timestamps": True}, {"request": TO_FRENCH}])
def test_all_that_is_asked_and_told(run, talk, streaming, asked, monkeypatch):
    """Also of a file of several pieces: bit for bit what rank 0 makes of it."""
    monkeypatch.setattr(dispatcher_module, "_PIECE_BYTES", 80_000)
    assert talk.stat().st_size > 3 * 80_000
    asked = {"chunking": ChunkOptions(10, 0.5), **asked}

    async def work(ranks):
        there = await ranks.events(talk, streaming, **asked)
        async with ranks.engine.lease(NAME) as lease:
            opened = open_recording(talk)
            reply = await lease.transcribe(talk, opened, asked, streaming=streaming)
            here = [event async for event in reply]
        return there, here, ranks.dispatcher.recordings

    there, here, recordings = run(work)
    assert recordings == [1, 1]  # the former is what keeps rank 0 busy
    assert there == here
    assert (there[-1].remarks, there[-1].drafts) == (here[-1].remarks, here[-1].drafts)
    assert there[-1].regions == here[-1].regions
    assert [s.logprobs for s in there[-1].segments] == [s.logprobs for s in here[-1].segments]
    assert (len(there) > 2 * len(there[-1].segments) + 1) is streaming


def test_each_recording_is_for_who_has_least_to_do(run):
    async def work(ranks):
        told = []
        with ranks.dispatcher.work(10) as first, ranks.dispatcher.work(4) as second:
            told += [first, second]
            with ranks.dispatcher.work(5) as third:
                told.append(third)
                with ranks.dispatcher.work(5) as fourth, ranks.dispatcher.work(1) as fifth:
                    told += [fourth, fifth]
            with ranks.dispatcher.work(1) as sixth:
                told.append(sixth)
        return told, ranks.dispatcher.recordings, ranks.dispatcher.seconds

    # rank 0: 10; rank 1: 4, then 9, then 14; rank 0: 11; and when these have gone rank 1: 5
    assert run(work) == ([0, 1, 1, 1, 0, 1], [2, 4], [0, 0])


def test_who_goes_away_frees_the_other_rank(run):
    """While it is sent, and while it is worked on."""

    async def work(ranks):
        for streaming in (True, False):
            async with ranks.reply(LONG, streaming) as reply:
                if streaming:
                    await anext(reply)
            await ranks.settled()
        task = asyncio.create_task(ranks.events(LONG))
        while not ranks.worker._work:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ranks.settled()
        done = ranks.other_engine.busy_seconds
        await ranks.events(SHORT)
        return done < ranks.other_engine.busy_seconds

    assert run(work)


def test_a_model_that_the_other_rank_cannot_load(run):
    def broken(name):
        raise CheckpointError("model.safetensors is damaged")

    async def work(ranks):
        with pytest.raises(CheckpointError, match=r"^model.safetensors is damaged$"):
            await ranks.events(SHORT)
        await ranks.settled()

    run(work, broken)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_other_rank_refuses(run, streaming):
    """Before the first event: the client has no answer yet."""

    wrong = {"options": {"num_beams": 2, "temperature": 0.5}}

    async def work(ranks):
        with pytest.raises(InputError) as error:
            async with ranks.reply(SHORT, streaming, **wrong):
                pytest.fail("it has begun")
        await ranks.settled()
        return str(error.value), error.value.option

    async def alone(ranks):
        async with ranks.engine.lease(NAME) as lease:
            with open_recording(SHORT) as opened, pytest.raises(InputError) as error:
                await lease.transcribe(SHORT, opened, wrong, streaming=streaming)
        return str(error.value), error.value.option

    assert run(work) == run(alone)


def test_a_full_disk_of_the_other_rank(run, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    async def work(ranks):
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "TemporaryFile", Full)
            with pytest.raises(OSError, match="No space") as error:
                await ranks.events(SHORT)
        await ranks.settled()
        assert (await ranks.events(SHORT))[-1].text
        return as_request_error(error.value).status

    assert run(work) == 507


def test_an_engine_of_the_other_rank_that_fails(run, monkeypatch, caplog):
    def boom(names):
        raise RuntimeError("boom")

    async def work(ranks):
        monkeypatch.setattr(ranks.other_store, "unload", boom)
        with pytest.raises(StoppedError):
            await ranks.events(SHORT)

    with pytest.raises(DistributedError, match="its engine has failed; its log says how"):
        run(work)
    assert "boom" in caplog.text


def test_a_rank_that_is_lost(run):
    """All that is worked on has an error, here and there, and nothing works any more."""

    async def work(ranks):
        async with ranks.reply(LONG) as reply, ranks.engine.lease(NAME) as lease:
            endless = await lease.steps(lambda model, processor: iter(int, 1))
            ranks.bus.inbox.put(DistributedError("rank 1 is lost"))
            with pytest.raises(StoppedError):
                async for _ in reply:
                    pass
            with pytest.raises(StoppedError):
                async for _ in endless:
                    pass
        with pytest.raises(StoppedError):
            await ranks.events(SHORT)
        return ranks.engine.failed, str(ranks.dispatcher.error)

    assert run(work) == (True, "rank 1 is lost")


def test_what_a_client_is_told_where_ranks_share_layers():
    """It is no fault of the client that one is lost."""
    wrong = as_request_error(DistributedError("the connection to another rank was lost"))
    assert (wrong.status, wrong.code) == (503, "shutting_down")


def full_disk():
    try:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    except OSError:
        try:
            raise AudioError("no room")
        except AudioError as error:
            return error


@pytest.mark.parametrize(
    "error",
    [
        AudioError("the file is damaged"),
        full_disk(),
        HubError("no such repository"),
        InputError.must_be("min_silence", 3, "at least 1"),
        UnsupportedOptionError.about("{option} {x!r} needs {draft}", option="speakers", x=["a"]),
        UnknownModelError("unknown"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
        StoppedError(),
        ZeroDivisionError("by 0"),
    ],
    ids=repr,
)
def test_errors_are_told_alike(error):
    there = as_request_error(error_from_json(error_to_json(error), 1))
    here = as_request_error(error)
    if isinstance(error, UnknownModelError):  # which rank 0 alone can tell
        assert there.status == 400
        return
    assert (there.status, there.body, there.headers) == (here.status, here.body, here.headers)


def test_a_recording_of_silence(run, tmp_path):
    soundfile.write(path := tmp_path / "silence.wav", np.zeros(16000), 16000)

    async def work(ranks):
        return await ranks.events(path)

    (transcript,) = run(work)
    assert (transcript.text, transcript.duration) == ("", 1.0)
    assert transcript.remarks
