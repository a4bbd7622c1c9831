"""Answers that come piece by piece, as server-sent events."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import as_request_error


class EventStream(Response):
    """Each event is one of the protocol's data: JSON. An error after the first is the last event,
    `{"error": ...}`.

    Args:
        events: what to send.
        work: what is to be left when the last event is out, or the client gone.
        end: a last line that is no JSON, such as `[DONE]`.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[dict[str, Any]], work: AsyncExitStack, end: str | None = None
    ):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._work, self._end = events, work, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}

        async def send_data(text: str) -> None:
            body = f"data: {text}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            async with self._work:
                await send(start)
                async for event in self._events:
                    await send_data(json.dumps(event, ensure_ascii=False, allow_nan=False))
                if self._end is not None:
                    await send_data(self._end)
        except Exception as error:
            await send_data(json.dumps({"error": as_request_error(error).body}))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
