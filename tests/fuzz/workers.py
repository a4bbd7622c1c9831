"""Processes that are given numbers, and are watched: one that hangs, crashes or takes too much
memory is ended, and another one goes on."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import queue
import re
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FINE, REFUSED, FAILED = "fine", "refused", "failed"
Job = Callable[[int], tuple[str, str]]  #: a number -> its outcome, one of these, and a message

#: until a process is ready; importing MLX takes a second, and more where much else runs
_START_SECONDS = 120
#: of memory; a process gets no more, so that the machine survives
_MOST_BYTES = 5 << 30
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Limits:
    """What a number may take.

    Attributes:
        seconds: of waiting.
        mebibytes: of memory, over what the process had when it was ready.
    """

    seconds: float = 20
    mebibytes: int = 1024


LIMITS = Limits()


@dataclass(frozen=True)
class Result:
    """What came of a number.

    Attributes:
        outcome, message: of the job, or `FAILED` and how.
        seconds: that it took.
        mebibytes: the most that the process had up to then, over what it had when it was ready.
        ended: whether the process cannot go on.
    """

    number: int
    outcome: str
    message: str
    seconds: float
    mebibytes: float = 0
    ended: bool = False


def run(
    job: Job, numbers: Iterable[int], processes: int = 1, limits: Limits = LIMITS
) -> Iterator[Result]:
    """The results of all numbers, as they come.

    Args:
        job: what each is given to, which processes can import by its name.
    """
    waiting = iter(list(numbers))
    results: queue.Queue[Result | BaseException | None] = queue.Queue()

    def watch() -> None:
        try:
            with tempfile.NamedTemporaryFile() as said:
                for result in _results(job, waiting, limits, Path(said.name)):
                    results.put(result)
            results.put(None)
        except BaseException as error:  # no process can be started
            results.put(error)

    for _ in range(processes):
        threading.Thread(target=watch, daemon=True).start()
    for _ in range(processes):
        for result in iter(results.get, None):
            if isinstance(result, BaseException):
                raise result
            yield result


def _results(job: Job, numbers: Iterator[int], limits: Limits, said: Path) -> Iterator[Result]:
    """Those of one process after the other."""
    worker = None
    try:
        for number in numbers:
            worker = worker or _Worker(job, said)
            result = worker.result(number, limits)
            yield result
            if result.ended:
                worker.close()
                worker = None
    finally:
        if worker:
            worker.close()


class _Worker:
    """A process that answers numbers with results, and says nothing but to a file."""

    def __init__(self, job: Job, said: Path):
        self._said = said
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job, said), daemon=True)
        self._process.start()
        theirs.close()
        self._ready_mebibytes = self._answer(_START_SECONDS)

    def result(self, number: int, limits: Limits) -> Result:
        start, more, ended = time.monotonic(), 0.0, True
        try:
            self._connection.send(number)
            outcome, message, peak = self._answer(limits.seconds)
            more = peak - self._ready_mebibytes
            ended = more > limits.mebibytes
            if ended:
                outcome, message = FAILED, f"{more:.0f} MiB, then {outcome} {message[:200]}"
        except TimeoutError:
            outcome, message = FAILED, f"no end after {limits.seconds:g} s"
        except (EOFError, ConnectionError):
            outcome, message = FAILED, self._crash()
        return Result(number, outcome, message, time.monotonic() - start, more, ended)

    def _answer(self, seconds: float) -> Any:
        if not self._connection.poll(seconds):
            raise TimeoutError
        return self._connection.recv()

    def _crash(self) -> str:
        self._process.join()
        code = self._process.exitcode
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        said = self._said.read_text(errors="replace")
        place = re.search(r'File ".*?/?([^/]+)", line (\d+)', said)
        return f"crash, {name}" + (f" at {place[1]}:{place[2]}" if place else f": {said[-200:]!r}")

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, job: Job, said: Path) -> None:
    """Be a worker."""
    file = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.enable()
    _limit_memory()
    connection.send(_peak_mebibytes())
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        _forget_peak()
        connection.send((*job(number), _peak_mebibytes()))


def _limit_memory() -> None:
    """Where the system does it; macOS does not."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # only Linux can
        _CLEAR.write_text("5")


def _peak_mebibytes() -> float:
    """The most memory that this process has had, since that was forgotten where it can be."""
    if _STATUS.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
