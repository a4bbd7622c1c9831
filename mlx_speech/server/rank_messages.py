"""What ranks tell each other of a request: as JSON, from which the other makes the same."""

import threading
from dataclasses import asdict
from typing import Any

from ..distributed.bus import Bus, Message
from ..errors import DistributedError, MlxSpeechError
from ..processing.request import TranscriptionRequest
from ..transcription.chunks import ChunkOptions
from ..transcription.transcript import Segment, Transcript, TranscriptionDelta
from .recording_task import Event
from .reply import Reply, StoppedError

END = "end"  #: what rank 0 posts last

_DATACLASSES = {"request": TranscriptionRequest, "chunking": ChunkOptions}


def received(bus: Bus) -> Reply[Message]:
    """What comes over a bus until `END`, for the event loop that this is called in.

    Raises:
        DistributedError: a rank is lost, or says that it has failed; raised by the reply.
    """
    reply: Reply[Message] = Reply()

    def run() -> None:
        try:
            while (message := bus.receive()) is None or message.content != END:
                if message is not None:
                    reply.put(message)
            reply.end()
        except DistributedError as error:
            reply.fail(error)

    threading.Thread(target=run, name="messages", daemon=True).start()
    return reply


def arguments_to_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `Lease.transcribe`; `arguments_from_json` is the inverse."""
    return {
        name: asdict(value) if name in _DATACLASSES else value for name, value in arguments.items()
    }


def arguments_from_json(data: dict[str, Any]) -> dict[str, Any]:
    """See `arguments_to_json`."""
    return {
        name: _DATACLASSES[name](**value) if name in _DATACLASSES else value
        for name, value in data.items()
    }


def event_to_json(event: Event) -> dict[str, Any]:
    """An event of a transcription; `event_from_json` is the inverse."""
    if isinstance(event, Transcript):
        return {"transcript": event.to_dict()}
    segment = None if event.segment is None else event.segment.to_dict()
    return {"text": event.text, "segment": segment, "speaker": event.speaker}


def event_from_json(data: dict[str, Any]) -> Event:
    """See `event_to_json`."""
    if "transcript" in data:
        return Transcript.from_dict(data["transcript"])
    segment = None if data["segment"] is None else Segment.from_dict(data["segment"])
    return TranscriptionDelta(data["text"], segment, data["speaker"])


def error_to_json(error: Exception) -> dict[str, Any]:
    """What a client is to be told, and by which status; `error_from_json` is the inverse."""
    match error:
        case MlxSpeechError(__context__=OSError(errno=int(number))):  # such as that of a full disk
            return {"ours": error.to_dict(), "errno": number}
        case MlxSpeechError():
            return {"ours": error.to_dict()}
        case OSError(errno=int(number), strerror=text):
            return {"errno": number, "text": text}
        case StoppedError():
            return {"stopped": True}
    return {"other": f"{type(error).__name__}: {error}"}


def error_from_json(data: dict[str, Any], rank: int) -> Exception:
    """The error of a rank."""
    match data:
        case {"ours": told, **more}:
            error = MlxSpeechError.from_dict(told)
            if "errno" in more:
                error.__context__ = OSError(more["errno"], "")
            return error
        case {"errno": number, "text": text}:
            return OSError(number, text)
        case {"stopped": True}:
            return StoppedError()
    return RuntimeError(f"on rank {rank}: {data['other']}")
