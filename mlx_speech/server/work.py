"""What a route does before it works: takes a place, a model, and what the client sends."""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import mlx.core as mx
from starlette.datastructures import UploadFile
from starlette.requests import Request

from ..audio import Recording, open_recording
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


@contextmanager
def uploaded(upload: UploadFile) -> Iterator[io.FileIO]:
    """The file that was uploaded, on disk, where it has no name."""
    with io.FileIO(os.dup(upload.file.fileno())) as file:
        yield file


async def opened(file: io.FileIO) -> Recording:
    """A recording, decoded in a thread of its own; errors as in `open_recording`."""
    return await in_thread(lambda: open_recording(file))


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
