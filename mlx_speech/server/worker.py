"""The ranks other than 0, as the server has them: each transcribes what rank 0 gives it."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..distributed.bus import Bus, Message
from ..errors import DistributedError
from ..signals import handled
from .engine import Engine
from .rank_messages import arguments_from_json, error_to_json, event_to_json, received
from .reply import StoppedError
from .work import OpenFile


class _Work:
    """A recording that rank 0 sends, or has sent."""

    def __init__(self) -> None:
        self.task: asyncio.Task | None = None
        self._file: Any = None
        self._error: OSError | None = None

    def add(self, data: bytes) -> None:
        """Keep a piece of its file."""
        try:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115
            self._file.write(data)
        except OSError as error:
            self._error = self._error or error

    def file(self) -> OpenFile:
        """All of it, which is then the caller's.

        Raises:
            OSError: it could not be kept, as where a disk is full.
        """
        if self._error is not None:
            raise self._error
        with self._file as file:
            file.flush()
            return OpenFile(file)

    def close(self) -> None:
        """Nobody waits for it any more."""
        if self.task is not None:
            self.task.cancel()
        if self._file is not None:
            with suppress(OSError):  # it may have been refused before
                self._file.close()


class Worker:
    """See above.

    Args:
        bus: that has been started.
        engine: that has not.
    """

    def __init__(self, bus: Bus, engine: Engine):
        self._bus, self._engine = bus, engine
        self._work: dict[int, _Work] = {}

    def run(self) -> None:
        """Work until rank 0 says that it is over.

        Raises:
            DistributedError: another rank is lost, or this one can do nothing any more.
        """
        asyncio.run(self.run_here())

    async def run_here(self) -> None:
        """The same, in the event loop that this is called in."""
        self._engine.start()
        self._messages = received(self._bus)
        try:
            async for message in self._messages:
                if message.rank == 0 and message.content["to"] == self._bus.group.rank:
                    self._handle(message)
        finally:
            for work in self._work.values():
                work.close()
            await self._engine.stop()

    def _handle(self, message: Message) -> None:
        asked = message.content
        number = asked["number"]
        match asked["kind"]:
            case "piece":
                self._work.setdefault(number, _Work()).add(message.data)
            case "begin":
                work = self._work[number]
                work.task = asyncio.create_task(self._transcribe(number, work, asked))
            case "close" if number in self._work:
                self._work.pop(number).close()

    async def _transcribe(self, number: int, work: _Work, asked: dict[str, Any]) -> None:
        try:
            async with self._engine.lease(asked["model"]) as lease:
                file = work.file()
                recording = await file.decoded()
                arguments = arguments_from_json(asked["arguments"])
                streaming = asked["streaming"]
                reply = await lease.transcribe(file, recording, arguments, streaming=streaming)
                self._tell(number, kind="begun")
                async for event in reply:
                    self._tell(number, event=event_to_json(event))
            self._tell(number, kind="ended")
        except Exception as error:
            self._tell(number, error=error_to_json(error))
            if isinstance(error, StoppedError) and self._engine.failed:
                self._messages.fail(DistributedError("its engine has failed; its log says how"))

    def _tell(self, number: int, **more: Any) -> None:
        self._bus.post({"number": number, "busy_seconds": self._engine.busy_seconds, **more})


@contextmanager
def ended_by_rank_0() -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM, which all ranks get, end rank 0 alone, once what is being
    worked on is done; another one ends this process, too."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)  # threads that compute could not be interrupted
        asked = True

    with handled({signal.SIGINT: handle, signal.SIGTERM: handle}):
        yield
