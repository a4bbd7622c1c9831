"""What each rank does to transcribe recordings with others: it does as rank 0 says, and asks for
more. All get all messages in one order, so all know who does what.

The messages, as lists, the first item being its kind:

    recordings SOURCES      these are to be transcribed (from rank 0, as the next two)
    load                    all ranks have the same: load the model
    tasks TASK...           further things to do
    facts FACTS             see `facts` (from each rank)
    unable REASON           it does not have what it needs, or cannot load the model
    loaded                  it has the model
    free                    it may be given something to do
    at TASK SECONDS         so much of a task is done
    done TASK SECONDS MEMORY    a task is done, which took that; its result as data
    failed TASK FATAL REASON    it cannot be done; FATAL: nor can any other
    end                     rank 0 is done, and so are all
"""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import mlx.core as mx

from ..checkpoint.hub import resolve_adapter, resolve_checkpoint
from ..distributed.bus import Bus, Message
from ..distributed.digests import digest, version_facts
from ..distributed.group import Group, as_loss
from ..distributed.schedule import TaskQueue
from ..errors import DistributedError, MlxSpeechError, UnsupportedOptionError
from ..transcription.parts import Part
from .common import load_named, loading_options
from .console import Console, display_name
from .inputs import ADDRESS
from .ranks import folder_facts
from .transcribe_options import Usage

#: a rank that has got no farther for so long is taken for hung; and for so much of the length of
#: what it transcribes, as nothing is told while that is read
HUNG_SECONDS, HUNG_SHARE = 600.0, 0.1

_SECONDS_BETWEEN_TELLS = 0.5  # how far a task is
_SECONDS_BETWEEN_LOOKS = 1.0  # whether the worker gets on


@dataclass(frozen=True)
class Task:
    """Something to do: a recording or a part of one.

    number: of the task, from 0.
    recording: its position among the sources.
    seconds: about how long it is.
    part: None: all of it, and its other audio tracks, if need be.
    """

    number: int
    recording: int
    seconds: float
    part: Part | None = None

    def to_dict(self) -> dict[str, Any]:
        """It as JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        part = data["part"]
        return cls(**{**data, "part": part and Part(**part)})


class Worker:
    """A thread that makes one call after the other, so that this one can tell and be told
    meanwhile. MLX's streams belong to threads: all is computed there, from loading on."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], float] | None]
        self._calls = queue.SimpleQueue()
        self.failure: Exception | None = None  #: what was wrong with a call
        self._limit: float | None = None
        self._alive = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def do(self, call: Callable[[], None], limit: float = float("inf")) -> None:
        """Make a call, after those before it.

        Args:
            limit: seconds that it may take without `progress`.
        """
        self._calls.put((call, limit))

    def progress(self) -> None:
        """It gets on."""
        self._alive = time.monotonic()

    def check(self) -> None:
        """Raises:
        DistributedError: nothing has come of the call for too long.
        Exception: what the call has raised.
        """
        limit, silent = self._limit, time.monotonic() - self._alive
        if limit is not None and silent > limit:
            message = f"nothing was done for {silent / 60:.0f} minutes: it hangs"
            self.failure = DistributedError(message)
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """End, if it is not in the middle of something: then it stays, until the process ends."""
        self._calls.put(None)
        if self._limit is None:
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            while given := self._calls.get():
                call, limit = given
                self.progress()
                self._limit = limit
                call()
                self._limit = None
        except Exception as error:
            self.failure = as_loss(error)
        finally:
            mx.clear_streams()  # or the process may abort at exit


class RankWork:
    """What this rank does, from its start to its end, which it is a context for: at its end all
    ranks end, in good order unless something is wrong with this one.

    Attributes:
        loaded: the model and its processor.
        queue: the tasks that nobody does yet.
        on_start: called with a task that some rank has begun.
    """

    def __init__(self, group: Group, args: argparse.Namespace, console: Console, usage: Usage):
        self.group, self.bus = group, Bus(group)
        self.args, self.console, self.usage = args, console, usage
        self.loaded: tuple[Any, Any]
        self.queue: TaskQueue[Task] = TaskQueue()
        self.on_start: Callable[[Task], None] = lambda task: None
        self.unable: Exception | None = None  #: why this rank is
        self._sources: list[str] = []
        self._worker = Worker()
        self._told = 0.0

    def __enter__(self) -> Self:
        self.bus.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        leader = self.group.rank == 0
        told = (KeyboardInterrupt, SystemExit, MlxSpeechError, OSError)
        orderly = leader and isinstance(error, told) and error is not self._worker.failure
        if error is None or orderly:
            if leader:
                self.bus.post(["end"])
            self.bus.close()
        else:
            self.bus.fail(error)
        self._worker.stop()

    def follow(self) -> None:
        """Do as rank 0 says, until that is done.

        Raises:
            DistributedError: a rank is lost, or has failed; this one hangs.
        """
        while self.receive().content != ["end"]:
            pass

    def receive(self) -> Message:
        """The next message, of which this rank has done its part; errors are as of `follow`."""
        while True:
            message = self.bus.receive(_SECONDS_BETWEEN_LOOKS)
            self._worker.check()
            if message is not None:
                self._obey(message)
                return message

    def _obey(self, message: Message) -> None:
        kind, *rest = message.content
        if kind == "recordings":
            (self._sources,) = rest
            self._worker.do(partial(self._or_unable, self._tell_facts))
        elif kind == "load":
            self._worker.do(partial(self._or_unable, self._load))
        elif kind == "tasks":
            self.queue.add(map(Task.from_dict, rest))
        elif kind == "free":
            self.queue.ask(message.rank)
        elif kind == "failed":
            failed = Task.from_dict(rest[0]).recording
            self.queue.remove([task for task in self.queue.tasks if task.recording == failed])
        for rank, task in self.queue.assign():
            self.on_start(task)
            if rank == self.group.rank:
                limit = HUNG_SECONDS + HUNG_SHARE * self._duration(task)
                self._worker.do(partial(self._transcribe, task), limit)

    def _duration(self, task: Task) -> float:
        """Of the whole recording, at least, as it is read for each part."""
        return task.seconds + (task.part.begin / 50 if task.part else 0)

    # What the worker does

    def _or_unable(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (MlxSpeechError, OSError) as error:
            self.unable = error
            self.bus.post(["unable", self.console.spelled(error)])

    def _tell_facts(self) -> None:
        self.bus.post(["facts", facts(self.args, self.console, self.usage, self._sources)])

    def _load(self) -> None:
        self.loaded = load_named(self.args, self.console)
        self.bus.post(["loaded"])
        self.bus.post(["free"])

    def _transcribe(self, task: Task) -> None:
        from ..transcription.pipeline import transcribe, transcribe_part

        source, start = self._sources[task.recording], time.perf_counter()
        options = {"progress": partial(self._tell_progress, task), **self.usage.options}
        mx.reset_peak_memory()
        result: Any
        try:
            if task.part is None:
                result = transcribe(source, self.loaded, **options)
            else:
                result = transcribe_part(source, self.loaded, task.part, **options)
        except (MlxSpeechError, OSError) as error:
            if self.console.debug:
                traceback.print_exception(error)
            fatal = isinstance(error, UnsupportedOptionError)
            self.bus.post(["failed", task.to_dict(), fatal, self.console.spelled(error)])
        else:
            took = time.perf_counter() - start, mx.get_peak_memory()
            data = json.dumps(result.to_dict()).encode()
            self.bus.post(["done", task.to_dict(), *took], data)
        self.bus.post(["free"])

    def _tell_progress(self, task: Task, done: float, duration: float) -> None:
        self._worker.progress()
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_TELLS:
            self._told = now
            self.bus.post(["at", task.to_dict(), done])


def facts(
    args: argparse.Namespace, console: Console, usage: Usage, sources: list[str]
) -> dict[str, str]:
    """What all ranks need to have alike, downloaded if need be; see `Group.check_same`.

    Raises:
        MlxSpeechError: there is no such model, or no such adapter.
    """
    asked = json.dumps([usage.options, args.dtype], default=str, sort_keys=True)
    found = {**version_facts(), "what is asked for": asked}
    hub = loading_options(args, console)
    folder = resolve_checkpoint(args.model, revision=args.revision, progress=hub["progress"])
    found |= folder_facts(args.model, folder)
    if args.adapter is not None:
        adapter = resolve_adapter(args.adapter, progress=hub["progress"])
        found |= folder_facts(args.adapter, adapter)
    for source in sources:
        if not ADDRESS.match(source) and (told := digest(source)):
            found[display_name(source)] = told
    return found
