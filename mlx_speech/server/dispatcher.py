"""Rank 0 among others: it speaks HTTP, and gives each recording to the rank with the least to do.

A recording is sent as the file that was uploaded, which the other opens as rank 0 has done, so that
all that is known of it is the same there.
"""

import asyncio
import io
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..distributed.bus import Bus, Message
from ..errors import DistributedError
from .rank_messages import END, arguments_to_json, error_from_json, event_from_json, received
from .recording_task import Event
from .reply import Reply, StoppedError

logger = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 22  # of a file; what others are told meanwhile comes between two


class Dispatcher:
    """See above.

    Args:
        bus: that has been started.

    Attributes:
        recordings: how many each rank was given so far, by rank.
        busy_seconds: that the engine of each has worked, as far as it has told; not of rank 0.
        error: why nothing works any more.
    """

    def __init__(self, bus: Bus):
        self.bus = bus
        size = bus.group.size
        self.recordings = [0] * size
        self._durations: list[list[float]] = [[] for _ in range(size)]
        self.busy_seconds = [0.0] * size
        self.error: Exception | None = None
        self._replies: dict[int, RemoteReply] = {}
        self._numbers = itertools.count()
        self._receiving: asyncio.Task | None = None
        self._messages: Reply[Message] | None = None

    def start(self, fail: Callable[[], None]) -> None:
        """Begin to take in what the others say.

        Args:
            fail: is called when one of them is lost.
        """
        self._receiving = asyncio.create_task(self._receive(fail))

    async def stop(self) -> None:
        """Tell the others that it is over."""
        self.bus.post(END)
        if self._receiving is not None:
            await self._receiving

    def lose(self, error: DistributedError) -> None:
        """A rank is lost, which the bus does not know; any thread may call this."""
        if self._messages is not None:
            self._messages.fail(error)

    @property
    def seconds(self) -> list[float]:
        """Of audio that each rank has in work."""
        return [sum(durations) for durations in self._durations]

    @contextmanager
    def work(self, seconds: float) -> Iterator[int]:
        """Around a recording of so many seconds: the rank that it is for."""
        rank = self.seconds.index(min(self.seconds))
        self.recordings[rank] += 1
        self._durations[rank].append(seconds)
        logger.info("%.3f s of audio for rank %d", seconds, rank)
        try:
            yield rank
        finally:
            self._durations[rank].remove(seconds)

    async def _receive(self, fail: Callable[[], None]) -> None:
        self._messages = received(self.bus)
        try:
            async for message in self._messages:
                self._handle(message)
        except Exception as error:
            self.error = error
            for reply in self._replies.values():
                reply.fail(StoppedError())
            fail()

    def _handle(self, message: Message) -> None:
        content = message.content
        if message.rank:
            self.busy_seconds[message.rank] = content["busy_seconds"]
        if (reply := self._replies.get(content["number"])) is None:
            return  # it was given up
        match content:
            case {"error": error}:
                reply.fail(error_from_json(error, message.rank))
            case {"event": event}:
                reply.put(event_from_json(event))
            case {"kind": "ended"}:
                reply.end()
            case {"kind": "begun" | "piece"}:  # the latter is our own, which all have got by now
                reply.go_on()

    def reply(self, rank: int) -> "RemoteReply":
        """For a request that a rank is to work on."""
        number = next(self._numbers)
        self._replies[number] = RemoteReply(self, rank, number)
        return self._replies[number]

    # What a reply calls

    def tell(self, rank: int, kind: str, number: int, data: bytes = b"", **more: Any) -> None:
        """Tell a rank something about a request.

        Raises:
            StoppedError: nothing works any more.
        """
        if self.error is not None:
            raise StoppedError
        self.bus.post({"to": rank, "kind": kind, "number": number, **more}, data)

    def remove(self, rank: int, number: int) -> None:
        """A request has ended, or is given up, which its rank learns."""
        if self._replies.pop(number, None) is not None and self.error is None:
            self.tell(rank, "close", number)


class RemoteReply(Reply[Event]):
    """What a request gets that another rank works on."""

    def __init__(self, dispatcher: Dispatcher, rank: int, number: int):
        super().__init__()
        self._dispatcher, self._rank, self._number = dispatcher, rank, number
        self._steps: Reply[None] = Reply()  # of `begin`

    async def begin(
        self, name: str, file: io.FileIO, arguments: dict[str, Any], streaming: bool
    ) -> None:
        """Send all that is needed; returns when the work has begun, and errors are as of
        `Lease.transcribe`."""
        for start in range(0, os.fstat(file.fileno()).st_size, _PIECE_BYTES):
            data = await asyncio.to_thread(os.pread, file.fileno(), _PIECE_BYTES, start)
            await self._tell("piece", data)
        arguments = arguments_to_json(arguments)
        await self._tell("begin", model=name, arguments=arguments, streaming=streaming)

    async def _tell(self, kind: str, data: bytes = b"", **more: Any) -> None:
        self._dispatcher.tell(self._rank, kind, self._number, data, **more)
        await anext(self._steps)

    def go_on(self) -> None:
        """What was told last has arrived."""
        self._steps.put(None)

    def fail(self, error: Exception) -> None:
        self._steps.fail(error)
        super().fail(error)

    def close(self) -> None:
        super().close()
        self._dispatcher.remove(self._rank, self._number)
