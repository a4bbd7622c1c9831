"""Realtime transcription: what clients send while they record, and what they are told meanwhile."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import time
import urllib.request

import numpy as np
import pytest
import soxr
from conftest import DATA
from openai import AsyncOpenAI
from realtime_client import (
    PARTIAL,
    TRANSCRIPTION,
    RealtimeClient,
    checked,
    kinds,
    of_kind,
    pcm,
    session,
    transcripts,
)
from serving import serving
from websockets.exceptions import ConnectionClosed, InvalidStatus

from mlx_speech import LiveTranscriber, load_audio
from mlx_speech.server.raw_audio import RawFormat

RATE = 24000
BUFFER = "input_audio_buffer"
COMMIT_EMPTY = "input_audio_buffer_commit_empty"


def recording(name: str, rate: int = RATE, silence: float = 1.0) -> np.ndarray:
    """A recording, and seconds of silence."""
    samples = soxr.resample(np.array(load_audio(DATA / "audio" / f"{name}.flac")), 16000, rate)
    return np.concatenate([samples, np.zeros(int(silence * rate))]).clip(-1, 1)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """Two sentences with a pause between them."""
    return np.concatenate([recording("espeak_02"), recording("flite_08")])


@pytest.fixture
def realtime(server):
    """A client that is connected."""
    with RealtimeClient(server) as client:
        yield client


def live_events(tiny, samples, rate=RATE, **options):
    """What a transcriber makes of samples as they are sent."""
    live = LiveTranscriber(tiny, sampling_rate=rate, **options)
    decoded = RawFormat("s16", rate).decode(pcm(samples))
    parts = range(0, len(decoded), rate)
    return [event for start in parts for event in live.push(decoded[start : start + rate])]


def texts(events, kind):
    """The texts of each segment."""
    ids = sorted({event.segment_id for event in events})
    return ["".join(e.text for e in events if (e.segment_id, e.kind) == (i, kind)) for i in ids]


def test_openai_client(server, tiny, samples):
    """With its own connection, in pieces of 100 ms."""

    async def main():
        client = AsyncOpenAI(base_url=f"{server}/v1", api_key="none")
        async with (
            client,
            client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
        ):
            assert (await connection.recv()).type == "session.created"
            await connection.session.update(session=session(transcription={"model": "tiny"}))
            updated = await connection.recv()
            assert updated.type == "session.updated"
            assert updated.session.audio.input.transcription.model == "tiny"
            data = pcm(samples)
            for start in range(0, len(data), 4800):
                audio = base64.b64encode(data[start : start + 4800]).decode()
                await connection.input_audio_buffer.append(audio=audio)
            events = []
            while len(transcripts(events)) < 2:
                events.append(checked(json.loads(await connection.recv_bytes())))
            return events

    events = asyncio.run(main())
    expected = live_events(tiny, samples)
    assert transcripts(events) == texts(expected, "corrected")
    assert transcripts(events)[1] == "unlock the back gate"
    first, second = (event["item_id"] for event in of_kind(events, f"{BUFFER}.speech_started"))
    for item, text in zip((first, second), texts(expected, "committed"), strict=True):
        of_item = [event for event in events if event.get("item_id") == item]
        assert kinds(of_item) == [
            f"{BUFFER}.speech_started",
            f"{TRANSCRIPTION}.delta",
            f"{BUFFER}.speech_stopped",
            f"{BUFFER}.committed",
            f"{TRANSCRIPTION}.segment",
            f"{TRANSCRIPTION}.completed",
        ]
        assert "".join(e["delta"] for e in of_kind(of_item, f"{TRANSCRIPTION}.delta")) == text
        assert of_item[-1]["usage"]["seconds"] > 1
    assert [e["previous_item_id"] for e in of_kind(events, f"{BUFFER}.committed")] == [None, first]
    added = of_kind(events, "conversation.item.added")
    assert [event["item"]["id"] for event in added] == [first, second]
    assert len({event["event_id"] for event in events}) == len(events)


def test_times_and_partial_texts(realtime, tiny, samples):
    expected = live_events(tiny, samples)
    realtime.append(pcm(samples), 4801 * 2)
    events = realtime.all_so_far()
    partials = [event["text"] for event in of_kind(events, PARTIAL)]
    assert set(partials) == {event.text for event in expected if event.kind == "partial"}
    for kind, name in (("started", "audio_start_ms"), ("stopped", "audio_end_ms")):
        told = [e[name] for e in events if name in e]
        assert told == [round(1000 * e.time) for e in expected if e.kind == kind]
    segments = of_kind(events, f"{TRANSCRIPTION}.segment")
    corrected = [event.segment for event in expected if event.kind == "corrected"]
    assert [(s["start"], s["end"]) for s in segments] == [(s.start, s.end) for s in corrected]


@pytest.mark.parametrize(
    ("audio_format", "rate", "encoding"),
    [
        ({"type": "audio/pcm", "rate": 16000}, 16000, "s16"),
        ({"type": "audio/pcm", "rate": 48000}, 48000, "s16"),
        ({"type": "audio/pcmu"}, 8000, "mulaw"),
        ({"type": "audio/pcma"}, 8000, "alaw"),
    ],
)
def test_formats(realtime, audio_format, rate, encoding):
    updated = realtime.update(format=audio_format)
    assert updated["session"]["audio"]["input"]["format"] == {"rate": 8000, **audio_format}
    samples = recording("espeak_02", rate)
    data = pcm(samples)
    if encoding != "s16":
        # the code of each sample is the one that is decoded to what is closest
        codes = RawFormat(encoding, rate).decode(bytes(range(256)))
        order = np.argsort(codes)
        middles = (codes[order][1:] + codes[order][:-1]) / 2
        data = bytes(order[np.searchsorted(middles, samples)].astype(np.uint8))
    realtime.append(data)
    assert transcripts(realtime.all_so_far()) == ["set the kitchen to thirty degrees"]


class TestTurns:
    def test_the_client_ends_them(self, realtime, tiny, samples):
        """An item goes on through pauses, until it is committed."""
        realtime.update(turn_detection=None)
        realtime.append(pcm(samples), RATE)
        realtime.send(f"{BUFFER}.commit")
        events = realtime.receive_until(f"{TRANSCRIPTION}.completed")
        assert transcripts(events) == ["set the kitchen to thirty degrees unlock the back gate"]
        assert not any(f"{BUFFER}.speech" in event["type"] for event in events)
        assert len({event["item_id"] for event in events if "item_id" in event}) == 1

    def test_items_of_several_segments(self, realtime):
        realtime.update(turn_detection=None, format={"type": "audio/pcm", "rate": 16000})
        long = np.array(load_audio(DATA / "audio" / "long.flac"))[: 30 * 16000]
        realtime.append(pcm(long), 64000)
        realtime.send(f"{BUFFER}.commit")
        events = realtime.receive_until(f"{TRANSCRIPTION}.completed")
        segments = [event["text"] for event in of_kind(events, f"{TRANSCRIPTION}.segment")]
        assert len(segments) >= 3
        assert transcripts(events) == [" ".join(segments)]
        deltas = "".join(event["delta"] for event in of_kind(events, f"{TRANSCRIPTION}.delta"))
        assert deltas == " ".join(deltas.split())
        assert len(deltas.split()) == pytest.approx(len(transcripts(events)[0].split()), abs=9)

    def test_a_commit_ends_what_is_being_said(self, realtime):
        realtime.append(pcm(recording("espeak_02", silence=0)))
        realtime.send(f"{BUFFER}.commit")
        realtime.send(f"{BUFFER}.commit", event_id="second")
        *events, error = realtime.receive_until("error")
        assert transcripts(events) == ["set the kitchen to thirty degrees"]
        assert error["error"]["code"] == COMMIT_EMPTY
        assert error["error"]["event_id"] == "second"

    @pytest.mark.parametrize("turn_detection", [{"type": "server_vad"}, None])
    def test_silence_is_committed_as_an_item_without_text(self, realtime, turn_detection):
        realtime.update(turn_detection=turn_detection)
        realtime.append(bytes(RATE * 2))
        realtime.send(f"{BUFFER}.commit")
        events = realtime.all_so_far()
        assert kinds(events) == [
            f"{BUFFER}.committed",
            "conversation.item.added",
            f"{TRANSCRIPTION}.completed",
        ]
        assert transcripts(events) == [""]

    def test_what_is_cleared_is_forgotten(self, realtime):
        realtime.append(pcm(recording("espeak_02", silence=0)))
        realtime.send(f"{BUFFER}.clear")
        started = realtime.receive_until(f"{BUFFER}.cleared")
        realtime.send(f"{BUFFER}.commit")
        assert realtime.receive()["error"]["code"] == COMMIT_EMPTY
        realtime.append(pcm(recording("flite_08")))
        events = realtime.all_so_far()
        assert transcripts(events) == ["unlock the back gate"]
        assert events[0]["item_id"] != started[0]["item_id"]

    def test_long_pauses_for_clients_that_are_not_eager(self, realtime, tiny, samples):
        realtime.update(turn_detection={"type": "semantic_vad", "eagerness": "high"})
        realtime.append(pcm(samples))
        assert transcripts(realtime.all_so_far()) == []
        realtime.append(bytes(RATE * 4))
        whole = np.concatenate([samples, np.zeros(RATE * 2)])
        expected = texts(live_events(tiny, whole, min_silence=2.0), "corrected")
        assert len(expected) == 1
        assert transcripts(realtime.all_so_far()) == expected


class TestSettings:
    def test_changes_end_what_is_being_said(self, realtime):
        """And times go on."""
        realtime.append(pcm(recording("espeak_02", silence=0)))
        realtime.send(
            "session.update", session=session(format={"type": "audio/pcm", "rate": 16000})
        )
        events = realtime.receive_until("session.updated")
        assert transcripts(events) == ["set the kitchen to thirty degrees"]
        realtime.append(pcm(recording("flite_08", 16000)))
        (started, *_) = events = realtime.all_so_far()
        assert transcripts(events) == ["unlock the back gate"]
        assert 2400 < started["audio_start_ms"] < 3200

    def test_those_that_are_the_same_end_nothing(self, realtime):
        data = pcm(recording("espeak_02"))
        realtime.append(data[: len(data) // 4 * 2])
        before = realtime.all_so_far()
        assert before
        assert realtime.update(format={"type": "audio/pcm", "rate": RATE})["type"] != "error"
        realtime.append(data[len(data) // 4 * 2 :])
        (text,) = transcripts(realtime.all_so_far())
        assert text == "set the kitchen to thirty degrees"

    @pytest.mark.parametrize("delay", ["high", "xhigh"])
    def test_who_can_wait_gets_the_decoders_text_alone(self, realtime, delay):
        realtime.update(transcription={"delay": delay})
        realtime.append(pcm(recording("espeak_02")))
        events = realtime.all_so_far()
        deltas = [event["delta"] for event in of_kind(events, f"{TRANSCRIPTION}.delta")]
        assert deltas == transcripts(events) == ["set the kitchen to thirty degrees"]
        assert of_kind(events, PARTIAL) == []

    def test_log_probabilities(self, realtime, tiny):
        include = ["item.input_audio_transcription.logprobs"]
        realtime.send("session.update", session={"type": "transcription", "include": include})
        assert realtime.receive()["session"]["include"] == include
        samples = recording("espeak_02")
        realtime.append(pcm(samples))
        (completed,) = of_kind(realtime.all_so_far(), f"{TRANSCRIPTION}.completed")
        assert "".join(token["token"] for token in completed["logprobs"]) == completed["transcript"]
        (segment,) = (e.segment for e in live_events(tiny, samples) if e.kind == "corrected")
        assert [token["logprob"] for token in completed["logprobs"]] == pytest.approx(
            segment.logprobs, abs=1e-4
        )

    def test_a_model_that_there_is_not(self, realtime):
        error = realtime.update(transcription={"model": "whisper-1"})["error"]
        assert (error["code"], error["event_id"]) == ("model_not_found", "update")
        realtime.append(pcm(recording("espeak_02")))
        assert transcripts(realtime.all_so_far()) == ["set the kitchen to thirty degrees"]

    def test_a_model_without_live_text(self, tiny_s2t):
        with serving(lambda name: tiny_s2t) as url, RealtimeClient(url) as client:
            assert "CTC" in client.update(transcription={})["error"]["message"]
            client.append(bytes(4800))
            assert "CTC" in client.receive()["error"]["message"]


class TestConnections:
    @pytest.mark.parametrize(
        ("query", "status", "code"),
        [
            ("", 400, "invalid_value"),
            ("intent=conversation", 400, "invalid_value"),
            ("intent=transcription&model=whisper-1", 404, "model_not_found"),
        ],
    )
    def test_addresses_that_are_wrong(self, server, query, status, code):
        with pytest.raises(InvalidStatus) as caught:
            RealtimeClient(server, query)
        assert caught.value.response.status_code == status
        assert json.loads(caught.value.response.body)["error"]["code"] == code

    def test_subprotocol_and_key_of_browsers(self, tiny):
        with serving(lambda name: tiny, api_key="secret") as url:
            key = ["realtime", "openai-insecure-api-key.secret"]
            with RealtimeClient(url, "intent=transcription&model=tiny", subprotocols=key) as client:
                assert client.socket.subprotocol == "realtime"
            with RealtimeClient(
                url, additional_headers={"Authorization": "Bearer secret"}
            ) as client:
                assert client.socket.subprotocol is None
            with pytest.raises(InvalidStatus):
                RealtimeClient(url, subprotocols=["realtime"])

    def test_pages_of_other_servers(self, tiny):
        """Which browsers let connect to anything."""
        with serving(lambda name: tiny, origins=["https://a.org"]) as url:
            for origin in (url, "https://a.org"):
                with RealtimeClient(url, origin=origin):
                    pass
            for origin in ("https://b.org", "null", url[:-1]):
                with pytest.raises(InvalidStatus) as caught:
                    RealtimeClient(url, origin=origin)
                assert caught.value.response.status_code == 403
        anybody = {"origins": ["*"]}
        with serving(lambda name: tiny, **anybody) as url, RealtimeClient(url, origin="https://b"):
            pass

    def test_one_that_is_gone_frees_its_place_and_the_model(self, tiny):
        with serving(lambda name: tiny, keep_alive=0, engine={"max_requests": 1}) as url:
            client = RealtimeClient(url)
            client.append(pcm(recording("espeak_02", silence=0)))
            client.receive()
            with pytest.raises(InvalidStatus) as caught:
                RealtimeClient(url)
            assert caught.value.response.status_code == 429
            assert "Retry-After" in caught.value.response.headers
            client.append(bytes(RATE * 2))
            client.socket.socket.close()  # without a farewell
            while (health := _health(url))["requests"] or health["models"]["tiny"] != "unloaded":
                time.sleep(0.01)
            with RealtimeClient(url) as client:
                client.append(samples := pcm(recording("espeak_02")))
                assert transcripts(client.all_so_far()) == ["set the kitchen to thirty degrees"]
            with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                audio = re.search(rb"^mlx_speech_audio_seconds_total (.+)$", answer.read(), re.M)
            assert float(audio[1]) > len(samples) / RATE / 2

    def test_the_end_of_the_server(self, tiny):
        with serving(lambda name: tiny) as url:
            client = RealtimeClient(url)
            client.append(pcm(recording("espeak_02", silence=0)))
            client.receive()
        with pytest.raises(ConnectionClosed) as caught:
            client.receive_until("never")
        assert caught.value.rcvd.code == 1012

    def test_others_get_their_turn(self, server):
        """While much audio is worked on that was sent at once."""
        long = np.array(load_audio(DATA / "audio" / "long.flac"))
        with RealtimeClient(server) as much, RealtimeClient(server) as little:
            much.update(format={"type": "audio/pcm", "rate": 16000})
            much.append(pcm(long))
            much.receive()
            little.append(pcm(recording("espeak_02")))
            assert transcripts(little.all_so_far()) == ["set the kitchen to thirty degrees"]
            assert all(end < 60_000 for end in _stops(much))
            much.socket.socket.close()


def _stops(client: RealtimeClient) -> list[int]:
    """Where segments end in what has come, in ms."""
    ends = []
    with contextlib.suppress(TimeoutError):
        while event := json.loads(client.socket.recv(timeout=0)):
            ends += [event["audio_end_ms"]] if "audio_end_ms" in event else []
    return ends


def _health(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
        return json.load(answer)
