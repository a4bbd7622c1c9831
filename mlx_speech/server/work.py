"""What a route does before it works: takes a place, a model, and what the client sends."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import mlx.core as mx
from starlette.requests import Request

from ..audio import Recording, open_recording
from ..audio.load import UnnamedFile
from .engine import Engine

T = TypeVar("T")


@asynccontextmanager
async def working(request: Request) -> AsyncIterator[Engine]:
    """Around all that a request has done: within the server's limits on number and time.

    Raises:
        BusyError: there are too many requests.
        TimeoutError: this one takes too long.
    """
    engine: Engine = request.app.state.engine
    async with asyncio.timeout(request.app.state.options.time_limit), engine.place():
        yield engine


class OpenFile(UnnamedFile):
    """One that is not closed with its request: a thread that is decoding it then would go on with
    whatever file gets its number next."""

    async def decoded(self) -> Recording:
        """Its samples; errors as of `open_recording`."""
        try:
            return await in_thread(partial(open_recording, self))
        except asyncio.CancelledError:
            os.ftruncate(self.fileno(), 0)  # the thread finds no more in it, and ends
            raise


async def in_thread(function: Callable[[], T]) -> T:
    """What a function returns that must not hold up the event loop, and may make arrays."""

    def run() -> T:
        try:
            return function()
        finally:
            mx.clear_streams()  # or the process may abort at exit

    thread = ThreadPoolExecutor(1)  # of its own: without its streams it is of no further use
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, run)
    finally:
        thread.shutdown(wait=False)
