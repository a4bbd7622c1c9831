"""The engine's thread: what several requests get is what each gets alone."""

import asyncio
import json
import threading
import weakref
from itertools import count

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import soundfile
from conftest import DATA, edit_json
from media import make, sine

import mlx_speech
from mlx_speech.audio import open_recording
from mlx_speech.errors import ContextLengthError, InputError, MlxSpeechError
from mlx_speech.processing.request import TranscriptionRequest
from mlx_speech.server.engine import BusyError, Engine
from mlx_speech.server.models import ModelStore, UnknownModelError
from mlx_speech.server.reply import StoppedError
from mlx_speech.transcription import drafted_batch
from mlx_speech.transcription.chunks import ChunkOptions

NAME = "tiny"
AUDIO = DATA / "audio"
SHORT = [AUDIO / f"{name}.flac" for name in ("flite_11", "festival_14", "espeak_01", "flite_07")]


@pytest.fixture
def store(tiny):
    return ModelStore([NAME], loader=lambda name: tiny)


def run(store, work, **options):
    """What `work(engine)` returns, a coroutine that is given an engine that works."""

    async def main():
        engine = Engine(store, **options)
        engine.start()
        try:
            return await asyncio.wait_for(work(engine), 120)
        finally:
            await engine.stop()

    return asyncio.run(main())


async def events_of(engine, path, streaming=False, **arguments):
    async with engine.place(), engine.lease(NAME) as lease:
        opened = await asyncio.to_thread(open_recording, path)
        reply = await lease.transcribe(path, opened, arguments, streaming=streaming)
        return [event async for event in reply]


@pytest.fixture(scope="module")
def alone(tiny):
    """What each of several recordings gives alone."""
    paths = [AUDIO / "long.flac", *SHORT]
    return {path: mlx_speech.transcribe(path, tiny, word_timestamps=True) for path in paths}


def check_equal(transcript, expected):
    """The same, but for how what is decoded together is rounded."""
    assert (transcript.text, transcript.regions) == (expected.text, expected.regions)
    for segment, other in zip(transcript.segments, expected.segments, strict=True):
        assert (segment.start, segment.end, segment.text) == (other.start, other.end, other.text)
        assert segment.tokens == other.tokens
        assert segment.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)
        assert [(w.text, w.start, w.end) for w in segment.words] == [
            (w.text, w.start, w.end) for w in other.words
        ]


class TestTranscription:
    @pytest.mark.parametrize(("batch_size", "streaming"), [(1, True), (3, False), (8, True)])
    def test_recordings_together_give_what_each_gives_alone(
        self, store, alone, streaming, batch_size
    ):
        words = {"word_timestamps": True}

        async def work(engine):
            return await asyncio.gather(*(events_of(engine, p, streaming, **words) for p in alone))

        for path, events in zip(alone, run(store, work, batch_size=batch_size), strict=True):
            *deltas, transcript = events
            check_equal(transcript, alone[path])
            assert "".join(delta.text for delta in deltas) == alone[path].text
            assert [d.segment for d in deltas if d.segment] == transcript.segments

    def test_text_streams_before_its_segment_ends(self, store):
        path = AUDIO / "long.flac"
        deltas = run(store, lambda engine: events_of(engine, path, streaming=True))[:-1]
        assert sum(bool(delta.text) for delta in deltas) > sum(
            delta.segment is not None for delta in deltas
        )

    @pytest.mark.parametrize(
        "arguments",
        [
            {"draft": False},
            {"ctc_only": True},
            {"options": {"num_beams": 2}},
            {"request": TranscriptionRequest("translate", target_language="fr")},
        ],
    )
    def test_however_they_are_decoded(self, store, tiny, arguments):
        flat = {k: v for k, v in arguments.items() if k not in ("options", "request")}
        flat |= arguments.get("options", {})
        if "request" in arguments:
            flat |= {"task": "translate", "target_language": "fr"}

        async def work(engine):
            return await asyncio.gather(*(events_of(engine, p, **arguments) for p in SHORT))

        for path, events in zip(SHORT, run(store, work), strict=True):
            check_equal(events[-1], mlx_speech.transcribe(path, tiny, **flat))

    def test_short_ones_do_not_wait_for_long_ones(self, store):
        ended = []

        async def one(engine, path):
            await events_of(engine, path)
            ended.append(path)

        async def work(engine):
            long = asyncio.create_task(one(engine, AUDIO / "long.flac"))
            await asyncio.sleep(0)
            await asyncio.gather(*(one(engine, path) for path in SHORT))
            await long

        run(store, work, batch_size=4)
        assert ended[-1] == AUDIO / "long.flac"

    def test_nor_for_silent_ones(self, store, tmp_path):
        silent = tmp_path / "silent.flac"
        soundfile.write(silent, np.zeros(5 * 60 * 16000, np.float32), 16000)
        ended = []

        async def one(engine, path):
            await events_of(engine, path)
            ended.append(path)

        async def work(engine):
            async with asyncio.TaskGroup() as group:
                group.create_task(one(engine, silent))
                await asyncio.sleep(0.1)
                for path in SHORT:
                    group.create_task(one(engine, path))

        run(store, work)
        assert ended[-1] == silent

    @pytest.mark.parametrize("streaming", [False, True])
    def test_another_track_where_the_decoder_writes_nothing(self, store, tiny, tmp_path, streaming):
        """Its chunks have all been taken when the first one's text turns out to be empty."""
        speech = np.array(mlx_speech.load_audio(DATA / "cases" / "clean.wav"))
        path = make(tmp_path / "talk.mkv", sine(seconds=2, hertz=50), speech)
        options = {"stop_strings": ["how far is it"]}  # which it writes of a hum
        asked = {"chunking": ChunkOptions(vad=False), "options": options}
        *_, transcript = run(store, lambda engine: events_of(engine, path, streaming, **asked))
        check_equal(transcript, mlx_speech.transcribe(path, tiny, vad=False, **options))
        assert transcript.audio_track == 2

    def test_an_error_is_that_of_its_request_alone(self, store, tiny):
        async def work(engine):
            wrong = events_of(engine, SHORT[0], options={"max_length": 3})
            right = events_of(engine, SHORT[1])
            return await asyncio.gather(wrong, right, return_exceptions=True)

        wrong, right = run(store, work)
        assert isinstance(wrong, MlxSpeechError)
        check_equal(right[-1], mlx_speech.transcribe(SHORT[1], tiny))

    @pytest.mark.parametrize("draft", [False, True])
    def test_also_where_others_are_decoded_together_with_it(self, tiny_copy, draft):
        """One recording is too long for the model, the others are not."""
        config = json.loads((tiny_copy / "config.json").read_text())
        text_config = {**config["text_config"], "max_position_embeddings": 100}
        edit_json(tiny_copy / "config.json", text_config=text_config)
        small = mlx_speech.load(tiny_copy, dtype=mx.float32)
        names = "flite_08", "espeak_04", "espeak_00"
        paths = [AUDIO / f"{name}.flac" for name in names]

        async def work(engine):
            asked = (events_of(engine, path, draft=draft) for path in paths)
            return await asyncio.gather(*asked, return_exceptions=True)

        store = ModelStore([NAME], loader=lambda name: small)
        first, wrong, second = run(store, work)
        assert isinstance(wrong, ContextLengthError)
        for path, events in ((paths[0], first), (paths[2], second)):
            check_equal(events[-1], mlx_speech.transcribe(path, small, draft=draft))

    def test_who_goes_away_frees_the_place(self, store):
        async def work(engine):
            async with engine.place(), engine.lease(NAME) as lease:
                opened = open_recording(AUDIO / "long.flac")
                reply = await lease.transcribe(AUDIO / "long.flac", opened, {}, streaming=True)
                await anext(reply)
            await events_of(engine, SHORT[0])
            while engine._batches:
                await asyncio.sleep(0.01)
            return engine.requests, store.users(NAME)

        assert run(store, work) == (0, 0)


def boom(*arguments, **options):
    raise RuntimeError("boom")


class TestFailures:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        "place",
        ["DraftedBatch.drop", "DraftedBatch.take_ended", "DraftedBatch.begin", "DraftedRow.text"],
    )
    def test_end_what_is_worked_on_and_no_more(self, store, tiny, monkeypatch, place, streaming):
        kind, name = place.split(".")

        async def work(engine):
            with monkeypatch.context() as patch:
                patch.setattr(getattr(drafted_batch, kind), name, boom)
                try:
                    await events_of(engine, SHORT[0], streaming)
                    failed = False
                except RuntimeError:
                    failed = True
            return failed, (await events_of(engine, SHORT[1]))[-1], engine.failed

        failed, transcript, died = run(store, work)
        assert failed == (streaming or place != "DraftedRow.text")  # only streams ask for it
        assert not died
        check_equal(transcript, mlx_speech.transcribe(SHORT[1], tiny))

    def test_of_what_nobody_waits_for_are_logged(self, store, caplog):
        def steps(model, processor):
            try:
                while True:
                    yield 1
            finally:
                boom()

        async def work(engine):
            async with engine.lease(NAME) as lease:
                await anext(await lease.steps(steps))
            async with engine.lease(NAME) as lease:
                return await lease.call(lambda *_: engine.failed)

        assert run(store, work) is False
        (record,) = caplog.records
        assert str(record.exc_info[1]) == "boom"

    def test_of_the_thread_are_told_to_everyone(self, store, monkeypatch, caplog):
        async def work(engine):
            async with engine.lease(NAME) as lease:
                forever = await lease.steps(lambda model, processor: (n for n in count()))
                monkeypatch.setattr(store, "unload", boom)
                with pytest.raises(StoppedError):
                    async for _ in forever:
                        pass
            with pytest.raises(StoppedError):
                async with engine.lease(NAME):
                    pass
            return engine.failed, engine.requests, store.users(NAME)

        assert run(store, work) == (True, 0, 0)
        assert "boom" in caplog.text


class TestPlaces:
    def test_there_are_so_many(self, store):
        async def work(engine):
            async with engine.place():
                with pytest.raises(BusyError):
                    async with engine.place():
                        pass
            async with engine.place():
                return engine.requests

        assert run(store, work, max_requests=1) == 1

    def test_what_is_waited_for_ends_with_the_engine(self, store):
        async def work(engine):
            async with engine.lease(NAME) as lease:
                forever = await lease.steps(lambda model, processor: (n for n in count()))
                stop = asyncio.create_task(engine.stop())
                with pytest.raises(StoppedError):
                    async for _ in forever:
                        pass
                await stop

        run(store, work)


class TestModels:
    def test_everything_is_computed_in_one_thread(self, tiny):
        threads = set()

        def loader(name):
            threads.add(threading.current_thread().name)
            return tiny

        async def work(engine):
            async with engine.lease(NAME) as lease:
                await lease.call(lambda *_: threads.add(threading.current_thread().name))

        run(ModelStore([NAME], loader=loader), work)
        assert threads == {"engine"}

    def test_one_that_is_not_used_is_given_up(self, tiny):
        loaded = []
        store = ModelStore([NAME], keep_alive=0, loader=lambda name: loaded.append(name) or tiny)

        async def work(engine):
            for _ in range(2):
                async with engine.lease(NAME):
                    assert store.state(NAME) == "ready"
                while store.state(NAME) != "unloaded":
                    await asyncio.sleep(0.01)

        run(store, work)
        assert loaded == [NAME, NAME]

    def test_its_memory_is_free_when_it_is_given_up(self, monkeypatch):
        """Also where a step of a request that has gone was in work."""
        model, gone, told = [nn.Identity()], threading.Event(), []
        alive = weakref.ref(model[0])
        store = ModelStore([NAME], keep_alive=0, loader=lambda name: (model.pop(), None))
        monkeypatch.setattr(mx, "clear_cache", lambda: told.append(alive() is None))

        def steps(model, processor):
            yield 1
            assert gone.wait(30)
            yield 2

        async def work(engine):
            async with engine.lease(NAME) as lease:
                await anext(await lease.steps(steps))
            gone.set()
            while store.state(NAME) != "unloaded":
                await asyncio.sleep(0.01)

        run(store, work)
        assert told == [True]

    def test_one_that_cannot_be_loaded(self):
        async def work(engine):
            with pytest.raises(InputError):
                async with engine.lease(NAME):
                    pass

        def loader(name):
            raise InputError("no")

        store = ModelStore([NAME], loader=loader)
        run(store, work)
        assert store.state(NAME) == "unloaded"
        assert store.users(NAME) == 0

    def test_a_name_may_be_short(self):
        store = ModelStore(["owner/one", "owner/two", "other/two"])
        assert store.resolve("one") == store.resolve("owner/one") == "owner/one"
        for unknown in ("two", "owner", "", "/etc"):
            with pytest.raises(UnknownModelError):
                store.resolve(unknown)
