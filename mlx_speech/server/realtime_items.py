"""What is said, as the items of a realtime conversation, told by OpenAI's events."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from ..generation.protocols import Detokenizes
from ..transcription.live import LiveEvent
from ..transcription.transcript import Segment
from . import answers
from .errors import as_request_error

#: sends an event: its type, and its members
Send = Callable[..., Awaitable[None]]
_TRANSCRIPTION = "conversation.item.input_audio_transcription"


def new_id(kind: str) -> str:
    """One that nothing else has, such as `item_…`."""
    return f"{kind}_{uuid4().hex[:24]}"


@dataclass
class _Item:
    """What somebody says until a pause, or until the client commits it.

    gap: what comes before the next text.
    """

    id: str = field(default_factory=lambda: new_id("item"))
    segments: list[Segment] = field(default_factory=list)
    gap: str = ""

    @property
    def text(self) -> str:
        """Of all segments, the decoder's."""
        return " ".join(segment.text for segment in self.segments if segment.text)


class Conversation:
    """The items, one after the other.

    Attributes:
        detects_turns: each segment is an item; otherwise one has all segments until `commit`.
        waits: texts are told when the decoder has written them.
        tokenizer: of the model, where log-probabilities of tokens are to be told.
        origin: where the times of events begin, in seconds.
        seconds: of all audio.
        latest: id of the latest item that was committed.
    """

    def __init__(self, send: Send):
        self._send = send
        self._item: _Item | None = None
        self._uncommitted = 0.0  # seconds of audio
        self.detects_turns, self.waits = True, False
        self.origin = self.seconds = 0.0
        self.tokenizer: Detokenizes | None = None
        self.latest: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no audio has come since the latest item."""
        return not self._uncommitted

    @property
    def has_open_item(self) -> bool:
        """Whether somebody speaks, or has spoken since the latest commit."""
        return self._item is not None

    def append(self, seconds: float) -> None:
        """Audio has come."""
        self.seconds += seconds
        self._uncommitted += seconds

    def clear(self) -> None:
        """What has come since the latest item is forgotten."""
        self._item, self._uncommitted = None, 0.0

    async def tell(self, event: LiveEvent) -> None:
        """Something became known."""
        time_ms = round(1000 * (self.origin + event.time))
        item = self._item
        if item is None:
            item = self._item = _Item()
            if self.detects_turns:
                start = {"audio_start_ms": time_ms, "item_id": item.id}
                await self._send("input_audio_buffer.speech_started", **start)
        match event.kind:
            case "committed" if not self.waits:
                await self._delta(item, event.text)
            case "partial" if not self.waits:
                text = event.text and item.gap + event.text
                await self._send("mlx_speech.partial", item_id=item.id, text=text)
            case "stopped" if self.detects_turns:
                end = {"audio_end_ms": time_ms, "item_id": item.id}
                await self._send("input_audio_buffer.speech_stopped", **end)
                await self._commit(item)
            case "corrected":
                await self._corrected(item, event)

    async def _delta(self, item: _Item, text: str) -> None:
        about = {"item_id": item.id, "content_index": 0}
        await self._send(f"{_TRANSCRIPTION}.delta", **about, delta=item.gap + text)
        item.gap = ""

    async def _corrected(self, item: _Item, event: LiveEvent) -> None:
        """The decoder has written a segment."""
        segment = event.segment
        assert segment is not None
        if self.waits and event.text:
            await self._delta(item, event.text)
        await self._send(
            f"{_TRANSCRIPTION}.segment",
            item_id=item.id,
            content_index=0,
            id=new_id("seg"),
            start=self.origin + segment.start,
            end=self.origin + segment.end,
            speaker="",  # nobody is told apart
            text=event.text,
        )
        item.segments.append(segment)
        item.gap = " " if item.text else ""
        if self.detects_turns:
            await self._complete(item)

    async def commit(self) -> None:
        """The client ends the item; without speech, it is one without text."""
        item = self._item or _Item()
        await self._commit(item)
        await self._complete(item)

    async def _commit(self, item: _Item) -> None:
        previous, self.latest, self._uncommitted = self.latest, item.id, 0.0
        about = {"item_id": item.id, "previous_item_id": previous}
        await self._send("input_audio_buffer.committed", **about)
        shown = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        await self._send("conversation.item.added", previous_item_id=previous, item=shown)

    async def _complete(self, item: _Item) -> None:
        self._item = None
        seconds = sum(segment.end - segment.start for segment in item.segments)
        completed: dict[str, Any] = {
            "transcript": item.text,
            "usage": {"type": "duration", "seconds": round(seconds, 3)},
        }
        if self.tokenizer is not None:
            logprobs = answers.logprobs(item.segments, self.tokenizer)
            completed["logprobs"] = [{**told, "bytes": told["bytes"] or []} for told in logprobs]
        about = {"item_id": item.id, "content_index": 0}
        await self._send(f"{_TRANSCRIPTION}.completed", **about, **completed)

    async def fail(self, error: Exception) -> None:
        """The open item cannot be transcribed."""
        item, self._item = self._item, None
        assert item is not None
        if item.id != self.latest:
            await self._commit(item)
        about = {"item_id": item.id, "content_index": 0}
        await self._send(f"{_TRANSCRIPTION}.failed", **about, error=as_request_error(error).body)
