"""Recordings inside messages: base64 -> samples."""

import base64
import binascii
import hashlib
import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx

from ..audio import open_recording
from ..audio.load import spool_to_disk
from ..errors import AudioError
from ..processing.chat_parts import Message
from .chat_request import EncodedAudio
from .errors import RequestError, as_request_error

#: of all recordings of a conversation, which are encoded in one piece
MAX_AUDIO_SECONDS = 300


@dataclass(frozen=True)
class Conversation:
    """Messages whose recordings are samples, (n,) at 16 kHz.

    digests: of the recordings, in order: they are the same where these are.
    """

    messages: Sequence[Message]
    digests: Sequence[bytes]


def decode_recordings(messages: Sequence[Message]) -> Conversation:
    """Decode the recordings of a conversation.

    Raises:
        RequestError: one cannot be decoded, or they are too long.
    """
    decoded: list[Message] = []
    digests: list[bytes] = []
    left = float(MAX_AUDIO_SECONDS)
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [*content]
            for number, part in enumerate(content):
                if part["type"] == "audio":
                    samples, digest, seconds = _decode(part["audio"], left)
                    content[number] = {"type": "audio", "audio": samples}
                    digests.append(digest)
                    left -= seconds
        decoded.append({**message, "content": content})
    return Conversation(decoded, digests)


def _decode(audio: EncodedAudio, most_seconds: float) -> tuple[mx.array, bytes, float]:
    try:
        data = base64.b64decode(audio.data, validate=True)
    except (binascii.Error, ValueError):
        message = f"{audio.name}.data is no base64: give the bytes of a file so, without a prefix"
        raise RequestError(message, 400, f"{audio.name}.data") from None
    with ExitStack() as stack:
        try:
            # decoders read it as a file that has no name: nothing is opened by what is in it
            file = spool_to_disk(io.BytesIO(data), audio.name, stack)
            recording = stack.enter_context(open_recording(file, name=audio.name))
        except AudioError as error:
            wrong = as_request_error(error)
            raise RequestError(str(wrong), wrong.status, audio.name, wrong.code) from None
        if recording.duration > most_seconds:
            message = f"recordings in a chat may have {MAX_AUDIO_SECONDS} s together: "
            message += "transcribe longer ones at /v1/audio/transcriptions"
            raise RequestError(message, 400, audio.name, "audio_too_long")
        return recording.read(), hashlib.sha256(data).digest(), recording.duration
