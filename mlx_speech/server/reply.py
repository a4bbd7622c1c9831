"""What requests get, piece by piece, from where it is computed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """The engine has stopped, or is about to."""


class Reply(Generic[T]):
    """What a request gets, from the engine's thread to the event loop that it was made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Callable[[], T]] = asyncio.Queue()
        self.closed = False

    def put(self, event: T) -> None:
        """Hand an event over; called by the engine's thread, as are the next two."""
        self._send(lambda: event)

    def fail(self, error: Exception) -> None:
        """No more events come, and this is why."""

        def raise_error() -> T:
            raise error

        self._send(raise_error)

    def end(self) -> None:
        """No more events come."""
        self.fail(StopAsyncIteration())

    def _send(self, event: Callable[[], T]) -> None:
        if not (self.closed or self._loop.is_closed()):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def close(self) -> None:
        """Nobody waits for events any more: the engine gives the request up at its next step."""
        self.closed = True

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return (await self._events.get())()
