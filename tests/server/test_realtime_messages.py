"""What the messages of realtime clients may be, whatever is transcribed; and what goes wrong."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from copy import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from realtime_client import TRANSCRIPTION, RealtimeClient, kinds, of_kind, session, transcripts
from serving import serving

from mlx_speech import ContextLengthError, MlxSpeechError, Segment
from mlx_speech.processing.prompts import GRANITE_5_0
from mlx_speech.processing.request import TranscriptionRequest
from mlx_speech.server.errors import RequestError, as_request_error
from mlx_speech.server.realtime_session import Session
from mlx_speech.transcription.live import LiveEvent

BUFFER = "input_audio_buffer"


class ScriptedLive:
    """Gives the events that it is told to, whatever it is sent.

    Attributes of the class:
        options: what it was made with, each time.
        sizes: of what was pushed.
        script: what each push, commit or finish gives, or raises.
    """

    options: list[dict]
    sizes: list[int]
    script: list

    def __init__(self, model, **options):
        self.options.append(options)
        self._ended = False

    def _next(self):
        given = self.script.pop(0) if self.script else []
        if isinstance(given, Exception):
            raise given
        return given

    def push(self, samples):
        assert threading.current_thread().name == "engine"
        assert samples.dtype == np.float32
        assert not self._ended
        self.sizes.append(samples.size)
        return self._next()

    def commit(self):
        return self._next()

    def finish(self):
        self._ended = True
        return self._next()

    def clear(self):
        pass


@pytest.fixture
def scripted(monkeypatch):
    """The class, in place of the one that transcribes."""
    for name in ("options", "sizes", "script"):
        monkeypatch.setattr(ScriptedLive, name, [], raising=False)
    monkeypatch.setattr("mlx_speech.server.live.LiveTranscriber", ScriptedLive)
    return ScriptedLive


@pytest.fixture(scope="module")
def server(tiny):
    """One whose model takes a language and keywords."""
    model, processor = tiny
    processor = copy(processor)
    processor.prompts = GRANITE_5_0
    with serving(lambda name: (model, processor)) as url:
        yield url


@pytest.fixture
def client(server, scripted):
    with RealtimeClient(server) as client:
        yield client


def corrected(number: int, text: str) -> LiveEvent:
    segment = Segment(number, number + 0.5, text, [], 0.0)
    return LiveEvent("corrected", number, number + 0.5, text, segment)


def sentence(number: int, text: str) -> list[LiveEvent]:
    """All events of a segment."""
    return [
        LiveEvent("started", number, number),
        LiveEvent("committed", number, number + 0.3, text),
        LiveEvent("stopped", number, number + 0.5),
        corrected(number, text),
    ]


WRONG = {
    "no JSON": ("{", "invalid_json", None),
    "no object": ("[]", "invalid_json", None),
    "no message": ("", "invalid_json", None),
    "too deep": ("[" * 100_000, "invalid_json", None),
    "half a character": (r'{"type": "what", "event_id": "\ud800"}', "invalid_json", None),
    "no type": ("{}", "invalid_value", "type"),
    "another type": ('{"type": "response.create"}', "invalid_value", "type"),
    "a list as its type": ('{"type": []}', "invalid_value", "type"),
    "a number as its id": (
        '{"type": "session.update", "event_id": 3}',
        "invalid_value",
        "event_id",
    ),
    "no session": ('{"type": "session.update"}', "invalid_value", "session"),
    "no audio": (f'{{"type": "{BUFFER}.append"}}', "invalid_value", "audio"),
    "no Base64": (f'{{"type": "{BUFFER}.append", "audio": "AAA"}}', "invalid_value", "audio"),
    "other letters": (f'{{"type": "{BUFFER}.append", "audio": "é==="}}', "invalid_value", "audio"),
    "odd bytes": (f'{{"type": "{BUFFER}.append", "audio": "AAAA"}}', "invalid_value", None),
    "nothing to commit": (f'{{"type": "{BUFFER}.commit"}}', f"{BUFFER}_commit_empty", None),
}


class TestMessages:
    @pytest.mark.parametrize(("message", "code", "param"), WRONG.values(), ids=WRONG.keys())
    def test_a_wrong_one_is_told_and_the_next_is_right(self, client, message, code, param):
        client.socket.send(message)
        error = client.receive()["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert error["type"] == "invalid_request_error"
        assert "\n" not in error["message"]
        client.send(f"{BUFFER}.clear", event_id="mine")
        assert client.receive()["type"] == f"{BUFFER}.cleared"

    def test_errors_tell_the_event_that_they_are_about(self, client):
        for name in ("this one", "é"):
            client.send("what", event_id=name)
            assert client.receive()["error"]["event_id"] == name

    def test_bytes_are_as_good_as_text(self, client):
        client.socket.send(json.dumps({"type": f"{BUFFER}.clear"}).encode())
        assert client.receive()["type"] == f"{BUFFER}.cleared"

    def test_what_is_too_long(self, client, scripted):
        longest = 15 * 2**20
        client.append(bytes(longest + 2))
        assert client.receive()["error"]["code"] == "audio_too_long"
        assert scripted.sizes == []
        client.append(bytes(longest))
        assert client.all_so_far() == []
        assert sum(scripted.sizes) * 2 == longest

    def test_pieces_of_a_second(self, client, scripted):
        client.append(bytes(2 * 60_000))
        client.append(b"")
        assert client.all_so_far() == []
        assert scripted.sizes == [24_000, 24_000, 12_000]


class TestItems:
    def test_several_at_once(self, client, scripted):
        scripted.script = [[*sentence(0, "one"), *sentence(1, "two")]]
        client.append(bytes(4800))
        events = client.all_so_far()
        assert transcripts(events) == ["one", "two"]
        assert len(of_kind(events, f"{BUFFER}.committed")) == 2

    def test_texts_of_an_item_that_the_client_commits(self, client, scripted):
        client.update(turn_detection=None)
        partial = LiveEvent("partial", 2, 2.4, " three")
        tail = [LiveEvent("committed", 2, 2.5, " four"), corrected(2, "three four")]
        scripted.script = [
            sentence(0, "one"),
            [LiveEvent("started", 1, 1), LiveEvent("stopped", 1, 1), corrected(1, "")],
            [*sentence(2, "three")[:2], partial],
            tail,
        ]
        for _ in range(3):
            client.append(bytes(4800))
        client.send(f"{BUFFER}.commit")
        events = client.all_so_far()
        deltas = [event["delta"] for event in of_kind(events, f"{TRANSCRIPTION}.delta")]
        assert deltas == ["one", " three", " four"]
        (completed,) = of_kind(events, f"{TRANSCRIPTION}.completed")
        assert completed["transcript"] == "one three four"
        assert completed["usage"] == {"type": "duration", "seconds": 1.5}
        assert kinds(events)[-3:] == [
            f"{BUFFER}.committed",
            "conversation.item.added",
            f"{TRANSCRIPTION}.completed",
        ]

    @pytest.mark.parametrize("error", [ContextLengthError("too long"), ZeroDivisionError()])
    def test_one_that_fails(self, client, scripted, error, caplog):
        scripted.script = [sentence(0, "one")[:2], error, sentence(1, "two")]
        for _ in range(3):
            client.append(bytes(4800))
        events = client.all_so_far()
        (failed,) = of_kind(events, f"{TRANSCRIPTION}.failed")
        first, second = (event["item_id"] for event in of_kind(events, f"{BUFFER}.committed"))
        assert failed["item_id"] == first != second
        assert transcripts(events) == ["two"]
        known = isinstance(error, ContextLengthError)
        assert failed["error"]["message"] == str(as_request_error(error))
        assert failed["error"]["type"] == ("invalid_request_error" if known else "server_error")
        assert bool(caplog.records) != known  # what is not known is a bug, and in the log

    def test_failures_without_an_item(self, client, scripted):
        scripted.script = [ContextLengthError("too long"), sentence(0, "one")]
        client.append(bytes(4800))
        client.append(bytes(4800))
        assert client.receive()["error"]["message"] == "too long"
        assert transcripts(client.all_so_far()) == ["one"]

    def test_a_commit_that_fails(self, client, scripted):
        client.update(turn_detection=None)
        scripted.script = [sentence(0, "one")[:2], ContextLengthError("too long")]
        client.append(bytes(4800))
        client.send(f"{BUFFER}.commit")
        events = client.all_so_far()
        assert len(of_kind(events, f"{BUFFER}.committed")) == 1
        assert kinds(events)[-1] == f"{TRANSCRIPTION}.failed"

    def test_what_fails_as_settings_change(self, client, scripted):
        """What comes then is transcribed with the old ones."""
        scripted.script = [[], ContextLengthError("too long"), sentence(0, "one")]
        client.append(bytes(4800))
        assert client.update(transcription={"delay": "high"})["error"]["message"] == "too long"
        client.append(bytes(4800))
        assert transcripts(client.all_so_far()) == ["one"]

    def test_a_client_that_commits_and_is_gone(self, server, scripted, caplog):
        with RealtimeClient(server) as client:
            client.append(bytes(4800))
            scripted.script = [[], sentence(0, "one")]
            client.append(bytes(4800))
            client.send(f"{BUFFER}.commit")
        with RealtimeClient(server) as client:
            client.append(bytes(4800))
            client.all_so_far()
        assert scripted.script == []
        assert caplog.records == []


UNSUPPORTED = [
    ({"noise_reduction": {"type": "near_field"}}, "noise_reduction"),
    ({"echo": True}, "echo"),
    ({"format": {"type": "audio/opus"}}, "format.type"),
    ({"format": {"rate": 96000}}, "format.rate"),
    ({"format": {"type": "audio/pcmu", "rate": 16000}}, "format.rate"),
    ({"format": []}, "format"),
    ({"transcription": None}, "transcription"),
    ({"transcription": {"model": 3}}, "transcription.model"),
    ({"transcription": {"temperature": 1}}, "transcription.temperature"),
    ({"transcription": {"delay": "soon"}}, "transcription.delay"),
    ({"turn_detection": {}}, "turn_detection.type"),
    ({"turn_detection": {"type": []}}, "turn_detection.type"),
    ({"turn_detection": "server_vad"}, "turn_detection"),
    ({"turn_detection": {"type": "server_vad", "threshold": 2}}, "turn_detection.threshold"),
    (
        {"turn_detection": {"type": "server_vad", "silence_duration_ms": 20}},
        "turn_detection.silence_duration_ms",
    ),
    (
        {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 5000}},
        "turn_detection.idle_timeout_ms",
    ),
    (
        {"turn_detection": {"type": "semantic_vad", "create_response": True}},
        "turn_detection.create_response",
    ),
]


class TestSettings:
    @pytest.mark.parametrize(("members", "param"), UNSUPPORTED)
    def test_what_cannot_be_is_refused_by_name(self, client, members, param):
        error = client.update(**members)["error"]
        assert error["param"] == f"session.audio.input.{param}"
        assert error["param"] in error["message"]
        assert error["event_id"] == "update"
        assert client.update()["session"] == client.session

    @pytest.mark.parametrize(
        ("wrong", "param"),
        [
            ({"type": "realtime"}, "session.type"),
            ({"instructions": "translate"}, "session.instructions"),
            ({"include": ["item.input_audio_transcription.words"]}, "session.include"),
            ({"audio": {"output": {}}}, "session.audio.output"),
            ({"audio": []}, "session.audio"),
        ],
    )
    def test_nor_outside_of_the_audio_that_is_sent(self, client, wrong, param):
        client.send("session.update", session={"type": "transcription", **wrong})
        assert client.receive()["error"]["param"] == param

    def test_those_that_are_not_told_stay(self, client, scripted):
        turn = {"type": "server_vad", "threshold": 0.7, "silence_duration_ms": 800}
        turn |= {"prefix_padding_ms": 600}
        client.update(turn_detection=turn, format={"type": "audio/pcm", "rate": 16000})
        client.update(transcription={"model": "tiny", "keywords": ["Ada"], "language": "en"})
        updated = client.update(
            transcription={"prompt": "Babbage, Byron", "language": None}, noise_reduction=None
        )
        shown = updated["session"]["audio"]["input"]
        assert shown["turn_detection"].items() >= turn.items()
        assert shown["format"] == {"type": "audio/pcm", "rate": 16000}
        assert shown["transcription"].items() >= {"keywords": ["Ada"], "language": None}.items()
        assert [made["sampling_rate"] for made in scripted.options] == [16000] * 3
        assert [made["keywords"] for made in scripted.options] == [
            None,
            ["Ada"],
            ["Babbage", "Byron", "Ada"],
        ]
        assert {made["min_silence"] for made in scripted.options} == {0.8}
        assert {made["vad_threshold"] for made in scripted.options} == {0.7}
        assert {made["prefix_padding"] for made in scripted.options} == {0.6}

    @pytest.mark.parametrize(
        ("told", "error"),
        [
            ({"language": "en", "languages": ["fr"]}, "language and languages"),
            ({"language": "xx"}, "xx"),
            ({"languages": ["en", "tlh"]}, "tlh"),
            ({"keywords": ["a\nb"]}, "keywords"),
            ({"prompt": "These are sentences. They tell a story of things."}, "prompt"),
        ],
    )
    def test_what_a_model_cannot_be_told(self, client, told, error):
        assert error in client.update(transcription=told)["error"]["message"]

    @pytest.mark.parametrize("languages", [{"language": "fr"}, {"languages": ["fr", "en"]}])
    def test_languages(self, client, scripted, languages):
        assert client.update(transcription=languages)["type"] == "session.updated"
        alone = "language" in languages
        assert scripted.options[-1]["language"] == ("fr" if alone else None)

    @pytest.mark.parametrize(
        ("eagerness", "seconds"), [("low", 8), ("medium", 4), ("auto", 4), ("high", 2)]
    )
    def test_eagerness(self, eagerness, seconds):
        turn = {"type": "semantic_vad", "eagerness": eagerness}
        updated = Session().updated(session(turn_detection=turn))
        assert updated.live_options["min_silence"] == seconds
        assert updated.live_options["request"] == TranscriptionRequest()


VALUES = st.sampled_from(
    [
        *(None, True, False, 0, -1, 0.5, 300, 8000, 10**400, 1e308, math.inf, math.nan),
        *("", "tiny", "en", "a\nb", "\ud800", "audio/pcm", "audio/pcmu", "server_vad"),
        *("semantic_vad", "high", [], [[]], [1], ["en"], ["<", "Ada"], {}, {"type": {}}),
    ]
)
MEMBERS = {
    "format": ("type", "rate"),
    "noise_reduction": ("type",),
    "transcription": ("model", "language", "languages", "prompt", "keywords", "delay"),
    "turn_detection": (
        *("type", "threshold", "prefix_padding_ms", "silence_duration_ms"),
        *("eagerness", "create_response", "interrupt_response"),
    ),
}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: VALUES | st.dictionaries(st.sampled_from(members), VALUES)
            for name, members in MEMBERS.items()
        },
    )
)
def test_whatever_is_in_a_field(members):
    """It is refused, or shown and understood; nothing else."""
    with contextlib.suppress(MlxSpeechError, RequestError):
        updated = Session().updated(session(**members))
        json.dumps(updated.as_json(), allow_nan=False)
        assert updated.live_options["request"]
        assert updated.format.raw
