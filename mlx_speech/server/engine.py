"""One thread that owns the models and computes everything, a step of each request in turn.

MLX's streams belong to threads, and a second one that computes would only wait for the device. So
the event loop hands requests over, and gets events back.
"""

import asyncio
import io
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Hashable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import mlx.core as mx

from ..audio import Recording
from ..audio.load import AudioSource
from ..transcription.pipeline import BATCH_SIZE, Job, prepare, run
from ..transcription.segment_decoder import SegmentDecoder
from .dispatcher import Dispatcher
from .models import ModelStore
from .recording_task import Event, RecordingTask
from .reply import Reply, StoppedError
from .shared_batch import DecodedTogether, DraftedTogether, SharedBatch

T = TypeVar("T")
logger = logging.getLogger(__name__)


class BusyError(Exception):
    """So many requests are being worked on, or wait, that another one has no place."""


@dataclass(eq=False)
class _Steps:
    """A request that is a generator's steps, one at a time."""

    reply: Reply
    steps: Generator

    def turn(self) -> bool:
        """Do one; whether there are more."""
        if self.reply.closed:
            self.end()
            return False
        try:
            self.reply.put(next(self.steps))
            return True
        except StopIteration:
            self.reply.end()
        except Exception as error:
            self.reply.fail(error)
        return False

    def end(self) -> None:
        """Do no more."""
        try:
            self.steps.close()
        except Exception as error:  # nobody waits to be told
            logger.error("a request that was given up failed", exc_info=error)


class Engine:
    """See above. `start` it, and `stop` it.

    Args:
        batch_size: chunks that are decoded together.
        max_requests: that may be worked on, or wait, at the same time.
        dispatcher: gives recordings to other ranks, if there are some.
    """

    def __init__(
        self,
        models: ModelStore,
        *,
        batch_size: int = BATCH_SIZE,
        max_requests: int = 64,
        dispatcher: Dispatcher | None = None,
    ):
        self.models, self.dispatcher = models, dispatcher
        self.max_requests = max_requests
        self.requests = 0  #: that have a place
        self.busy_seconds = 0.0  #: that the thread has worked so far
        self.live_seconds = 0.0  #: of audio that was transcribed while it came in
        self._batch_size = batch_size
        self._calls: deque[Callable[[], None]] = deque()
        self._steps: list[_Steps] = []
        self._batches: dict[Hashable, SharedBatch] = {}
        self._changed = threading.Condition()
        self._stopping = self._failed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # What the event loop calls

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()
        if self.dispatcher is not None:
            self.dispatcher.start(self._fail)

    @property
    def failed(self) -> bool:
        """Whether the thread has ended by itself, as it never should, or another rank has: nothing
        works any more."""
        return self._failed

    async def stop(self) -> None:
        """End, with what is being worked on given up."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        if self.dispatcher is not None:
            await self.dispatcher.stop()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Around a request, from its beginning to its end.

        Raises:
            BusyError: there are too many.
        """
        if self.requests >= self.max_requests:
            raise BusyError
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator["Lease"]:
        """A model, which stays loaded meanwhile; what was begun with it is given up at the end.

        Args:
            name: one that `ModelStore.resolve` gave.

        Raises:
            MlxSpeechError: it cannot be loaded.
        """
        self.models.hold(name)
        lease = Lease(self, name)
        try:
            await self.call(partial(self.models.load, name))
            yield lease
        finally:
            lease.close()
            self.models.release(name)
            self._wake()

    async def call(self, function: Callable[[], T]) -> T:
        """What a function returns, or raises, that is called as the engine's next step."""
        reply: Reply[T] = Reply()

        def run() -> None:
            try:
                if self._stopping:
                    raise StoppedError
                if not reply.closed:
                    reply.put(function())
            except Exception as error:
                reply.fail(error)

        with self._changed:
            if self._stopping:
                raise StoppedError
            self._calls.append(run)
            self._changed.notify()
        try:
            return await anext(reply)
        finally:
            reply.close()

    # What the engine's thread does

    def add_steps(self, reply: Reply, steps: Generator) -> None:
        """Do a generator's steps, one in each turn, for `reply`; called by the engine's thread."""
        self._steps.append(_Steps(reply, steps))

    def add_recording(self, key: Hashable, task: RecordingTask) -> None:
        """Decode a recording together with others of the same key; likewise."""
        if key not in self._batches:
            drafts = task.decoder.drafting and isinstance(task.decoder, SegmentDecoder)
            kind = DraftedTogether if drafts else DecodedTogether
            self._batches[key] = kind(self._batch_size)
        self._batches[key].add(task)

    def _fail(self) -> None:
        with self._changed:
            self._stopping = self._failed = True
            self._changed.notify()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._stopping or self._calls or self._steps or self._batches):
                        left = self.models.seconds_to_unload()
                        if left == 0:
                            break
                        self._changed.wait(left)
                    if self._stopping:
                        break
                start = time.perf_counter()
                self._turn()
                self.busy_seconds += time.perf_counter() - start
        except BaseException as error:
            logger.critical("the thread that computes has failed", exc_info=error)
            self._fail()
        finally:
            self._give_up()
            mx.clear_streams()  # or the process may abort at exit

    def _turn(self) -> None:
        """A step of each request."""
        idle = self.models.idle()
        while self._calls:
            self._calls.popleft()()
        self._steps = [steps for steps in self._steps if steps.turn()]
        batches = self._batches.items()
        self._batches = {key: batch for key, batch in batches if self._batch_turn(batch)}
        # what was begun with those that were idle before has ended by now, and holds them no more
        self.models.unload(idle)

    def _batch_turn(self, batch: SharedBatch) -> bool:
        """One of a batch; whether there are more."""
        try:
            batch.turn()
        except Exception as error:  # nobody knows whose fault it is
            batch.fail(error)
            return False
        return not batch.is_empty

    def _give_up(self) -> None:
        for steps in self._steps:
            steps.reply.fail(StoppedError())
            steps.end()
        for batch in self._batches.values():
            batch.fail(StoppedError())
        while self._calls:
            self._calls.popleft()()


class Lease:
    """A loaded model, for one request. Its methods return when the work has begun, so that what is
    wrong with a request is raised by them, and not by the events."""

    def __init__(self, engine: Engine, name: str):
        self._engine, self.name = engine, name
        self._replies: list[Reply] = []
        self._works = ExitStack()

    async def call(self, function: Callable[[Any, Any], T]) -> T:
        """What a function of (model, processor) returns, or raises."""
        return await self._engine.call(lambda: function(*self._loaded()))

    async def steps(self, function: Callable[[Any, Any], Generator[T, None, Any]]) -> Reply[T]:
        """What a generator yields, which a function of (model, processor) returns."""
        reply: Reply[T] = self._reply()

        def begin() -> None:
            self._engine.add_steps(reply, function(*self._loaded()))

        await self._engine.call(begin)
        return reply

    async def transcribe(
        self,
        audio: AudioSource,
        opened: Recording,
        arguments: dict[str, Any],
        *,
        streaming: bool = False,
    ) -> Reply[Event]:
        """A recording's texts, and at last its transcript; of a file perhaps by another rank.

        Args:
            audio, opened: see `prepare`. The engine closes `opened`.
            arguments: further ones of `prepare`.
            streaming: texts are to come as they become certain, and not only with their segments.
        """
        dispatcher = self._engine.dispatcher
        if dispatcher is not None and isinstance(audio, io.FileIO):
            rank = self._works.enter_context(dispatcher.work(opened.duration))
            if rank != 0:
                opened.close()
                remote = dispatcher.reply(rank)
                self._replies.append(remote)
                await remote.begin(self.name, audio, arguments, streaming)
                return remote
        reply: Reply[Event] = self._reply()
        begin = partial(self._begin, reply, audio, opened, arguments, streaming)
        await self._engine.call(begin)
        return reply

    def _begin(
        self,
        reply: Reply[Event],
        audio: AudioSource,
        opened: Recording,
        arguments: dict[str, Any],
        streaming: bool,
    ) -> None:
        job = prepare(audio, self._loaded(), **arguments, streaming=streaming, opened=opened)
        key = _batch_key(job, arguments, streaming)
        if key is None:
            self._engine.add_steps(reply, _alone(job, streaming))
        else:
            self._engine.add_recording((self.name, key), RecordingTask(job, reply, streaming))

    def close(self) -> None:
        """Give up what was begun."""
        for reply in self._replies:
            reply.close()
        self._works.close()

    def _reply(self) -> Reply:
        self._replies.append(Reply())
        return self._replies[-1]

    def _loaded(self) -> tuple[Any, Any]:
        loaded = self._engine.models.loaded(self.name)
        assert loaded is not None, "a lease holds it"
        return loaded


def _alone(job: Job, streaming: bool) -> Generator[Event, None, None]:
    """The events of a recording whose chunks cannot be decoded together with others."""
    transcript = yield from run(
        job, Job.stream if streaming else partial(Job.batches, batch_size=1)
    )
    yield transcript


def _batch_key(job: Job, arguments: dict[str, Any], streaming: bool) -> Hashable | None:
    """What recordings must have in common for their chunks to be decoded together; None: they
    are not, for what a chunk gives depends on those before, or is to come token by token."""
    decoder = job.decoder
    if not decoder.independent:
        return None
    if decoder.drafting and isinstance(decoder, SegmentDecoder):
        return "drafted", repr(decoder.how.options)
    return None if streaming else ("decoded", repr(sorted(arguments.items())))
