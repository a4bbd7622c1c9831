"""Conversations whose messages are lists of parts: text and recordings."""

import reprlib
from collections.abc import Sequence
from typing import Any

from ..errors import InputError

Message = dict[str, Any]
#: under which of these names a part has its recording
_SOURCES = ("audio", "path", "url")


def as_conversations(conversation: Any) -> tuple[list[list[Message]], bool]:
    """A conversation, or several, as a list of them; and whether there are several.

    Raises:
        InputError: it is none, or a message or part is malformed.
    """
    is_list = isinstance(conversation, list | tuple)
    batched = is_list and bool(conversation) and isinstance(conversation[0], list | tuple)
    found = conversation if batched else [conversation]
    for messages in found:
        if not isinstance(messages, list | tuple):
            raise InputError(f"a chat is a list of messages, but this is {shown(messages)}")
        for message in messages:
            _check(message)
    return [list(messages) for messages in found], batched


def has_parts(messages: Sequence[Message]) -> bool:
    """Whether a message is a list of parts."""
    return any(not isinstance(message["content"], str) for message in messages)


def recordings_of(messages: Sequence[Message]) -> list[Any]:
    """The recordings of a conversation, in order; those that parts do not have are left out."""
    contents = (m["content"] for m in messages if not isinstance(m["content"], str))
    parts = (part for content in contents for part in content if part["type"] == "audio")
    given = ([part[name] for name in _SOURCES if part.get(name) is not None] for part in parts)
    return [sources[0] for sources in given if sources]


def without_recordings(messages: Sequence[Message]) -> list[Message]:
    """The conversation as plain data, which templates can be given."""

    def plain(part: Message) -> Message:
        return {"type": "audio"} if part["type"] == "audio" else part

    return [
        m if isinstance(m["content"], str) else {**m, "content": [plain(p) for p in m["content"]]}
        for m in messages
    ]


def joined(messages: Sequence[Message], audio: str) -> list[Message]:
    """The conversation with each content as one string, in which `audio` is for a recording."""

    def text_of(content: str | Sequence[Message]) -> str:
        if isinstance(content, str):
            return content
        return "".join(audio if part["type"] == "audio" else part["text"] for part in content)

    return [{**message, "content": text_of(message["content"])} for message in messages]


def _check(message: Any) -> None:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str | list | tuple) or not isinstance(message.get("role"), str):
        form = "{'role': ..., 'content': ...}, with text or a list of parts"
        raise InputError(f"a message is {form}, but one is {shown(message)}")
    for part in () if isinstance(content, str) else content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "audio" and not (kind == "text" and isinstance(part.get("text"), str)):
            known = "{'type': 'audio', 'audio': ...} or {'type': 'text', 'text': ...}"
            raise InputError(f"a part of a message is {known}, but one is {shown(part)}")


def shown(value: Any) -> str:
    """A value of any kind and length, on a part of a line."""
    return " ".join(reprlib.repr(value).split())
