"""A client of `/v1/realtime` that checks what it gets by the types of OpenAI's."""

from __future__ import annotations

import base64
import json
from contextlib import ExitStack
from copy import deepcopy
from typing import get_args

import numpy as np
from openai.types.realtime import RealtimeServerEvent
from websockets.sync.client import connect

PARTIAL = "mlx_speech.partial"
TRANSCRIPTION = "conversation.item.input_audio_transcription"

_EVENTS = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(RealtimeServerEvent)[0])
}


def checked(event: dict) -> dict:
    """The same, if it is an event."""
    if event["type"] == PARTIAL:
        assert event.keys() == {"type", "event_id", "item_id", "text"}
        return event
    kind = _EVENTS[event["type"]]
    assert event.keys() <= kind.model_fields.keys()
    if not event["type"].startswith("session."):
        kind.model_validate(event)
        return event
    audio_format = event["session"]["audio"]["input"]["format"]
    assert audio_format["rate"] in range(8000, 48001)
    usual = deepcopy(event)
    usual["session"]["audio"]["input"]["format"]["rate"] = 24000  # the only one that OpenAI takes
    session = kind.model_validate(usual).session
    assert type(session).__name__ == "RealtimeTranscriptionSessionCreateRequest"
    return event


class RealtimeClient:
    """Sends events as dicts, and gets them."""

    def __init__(self, url: str, query: str = "intent=transcription", **options):
        address = f"{url.replace('http', 'ws', 1)}/v1/realtime?{query}"
        self._stack = ExitStack()
        self.socket = self._stack.enter_context(connect(address, max_size=None, **options))
        self.session = self.receive()["session"]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()

    def send(self, kind: str, **members) -> None:
        self.socket.send(json.dumps({"type": kind, **members}))

    def receive(self) -> dict:
        return checked(json.loads(self.socket.recv(timeout=60)))

    def append(self, data: bytes, size: int | None = None) -> None:
        """Send audio, in pieces of so many bytes."""
        size = size or max(1, len(data))
        for start in range(0, len(data), size):
            audio = base64.b64encode(data[start : start + size]).decode()
            self.send("input_audio_buffer.append", audio=audio)

    def update(self, **members) -> dict:
        """Change settings of the audio that is sent; returns the answer."""
        self.send("session.update", session=session(**members), event_id="update")
        return self.receive_until("session.updated", "error")[-1]

    def receive_until(self, *kinds: str) -> list[dict]:
        """Events up to one of these types."""
        events = [self.receive()]
        while events[-1]["type"] not in kinds:
            events.append(self.receive())
        return events

    def all_so_far(self) -> list[dict]:
        """Events of what was sent up to now."""
        self.send("what is nothing")
        *events, last = self.receive_until("error")
        assert "what is nothing" in last["error"]["message"]
        return events


def session(**members) -> dict:
    """A `session` with settings of the audio that is sent."""
    return {"type": "transcription", "audio": {"input": members}}


def pcm(samples: np.ndarray) -> bytes:
    """Samples as 16-bit integers."""
    return (samples * 32767).round().astype("<i2").tobytes()


def kinds(events: list[dict]) -> list[str]:
    """The types of events, each run of the same once, without partials."""
    told = [event["type"] for event in events if event["type"] != PARTIAL]
    return [kind for kind, before in zip(told, [None, *told], strict=False) if kind != before]


def of_kind(events: list[dict], kind: str) -> list[dict]:
    """Those of one type."""
    return [event for event in events if event["type"] == kind]


def transcripts(events: list[dict]) -> list[str]:
    """The texts of items."""
    return [event["transcript"] for event in of_kind(events, f"{TRANSCRIPTION}.completed")]
