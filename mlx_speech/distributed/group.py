"""The group of ranks, and what they tell each other, within a time limit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

import mlx.core as mx
import numpy as np

from ..errors import DistributedError
from ..signals import SIGNALS, handled
from .launched import rank_of_launch
from .memory import CACHE_BYTES

#: how long a rank waits for the others before it takes one for lost
TIMEOUT_SECONDS = 60.0

_MAGIC = 0x6D6C7820  # what is gathered begins with
_BACKENDS = ("[ring]", "[jaccl]", "[mpi]", "[nccl]")  # how their errors begin

_LOST = "the connection to another rank was lost: it has ended, or its machine or the network has"
_SILENT = "nothing came from another rank for {seconds:.0f} s: it hangs, or the network does"
_ABSENT = "the ranks did not all start within {seconds:.0f} s: see what the others say"
# ends a process that says no more, for longer than it said last, from without: MLX may wait for
# other ranks while it holds Python's lock (0.32.4 does in `clear_cache`)
_GRACE_SECONDS = 3.0
_GUARD = """
import os, select, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
limit = None
while select.select([0], [], [], limit)[0]:
    told = os.read(0, 1 << 16).split()
    if not told:
        sys.exit()
    limit = None if told[-1] == b"-" else float(told[-1])
os.write(2, f"error: {sys.argv[2]}\\n".format(seconds=limit - float(sys.argv[3])).encode())
os.kill(int(sys.argv[1]), signal.SIGKILL)
"""
# ends the process that holds the other end of its standard input, unless it lets go in time
_WATCHDOG = """
import os, select, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
if not select.select([sys.stdin], [], [], float(sys.argv[2]))[0]:
    os.write(2, f"error: {sys.argv[3]}\\n".encode())
    os.kill(int(sys.argv[1]), signal.SIGKILL)
"""


class Group:
    """The ranks of one run. Only one thread may use it at a time.

    What waits for other ranks cannot be interrupted, as MLX waits for them in C++, and where one
    dies it mostly says so at once, but may wait for ever. So what takes longer than `timeout` ends
    the process: `on_silence` is called from a thread of its own with a message, and should not
    return. If it does, as by default, another process tells the message and kills this one.

    Args:
        distributed: MLX's own group.
        timeout: seconds.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        on_silence: as given; another one may take its place.
    """

    def __init__(
        self,
        distributed: mx.distributed.Group,
        on_silence: Callable[[str], object] = lambda message: None,
        timeout: float = TIMEOUT_SECONDS,
    ):
        self.distributed = distributed
        self.rank, self.size, self.timeout = distributed.rank(), distributed.size(), timeout
        self.on_silence = on_silence
        self._deadline: float | None = None
        self._lost = False
        self._gathered = 0  # so many times
        self._own = threading.local()  # a stream of each thread
        self._changed = threading.Condition()
        who = f"rank {self.rank}: " if self.rank else ""
        given = str(os.getpid()), who + _SILENT, str(_GRACE_SECONDS)
        arguments = [sys.executable, "-ISc", _GUARD, *given]
        self._guard = subprocess.Popen(arguments, stdin=subprocess.PIPE)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @classmethod
    def start(
        cls,
        on_silence: Callable[[str], object] = lambda message: None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Self | None:
        """The group that this process was launched in; None if it is alone.

        Raises:
            DistributedError: the others cannot be reached.
        """
        launched = rank_of_launch()
        if launched is None:
            return None
        message = _ABSENT.format(seconds=timeout)
        # MLX waits for the others while it holds Python's lock: no thread could end that
        arguments = [sys.executable, "-ISc", _WATCHDOG, str(os.getpid()), str(timeout), message]
        with (
            subprocess.Popen(arguments, stdin=subprocess.PIPE) as watchdog,
            _ended_by_signals_at_once(),
        ):
            try:
                distributed = mx.distributed.init()
            except (RuntimeError, ValueError) as error:
                raise DistributedError(f"the other ranks cannot be reached: {error}") from error
            finally:
                watchdog.kill()
        mx.set_cache_limit(CACHE_BYTES)  # see `clear_cache`, as it waits likewise
        if distributed.size() == 1:
            if launched:
                reason = "MLX was built without the backend that launched this one"
                raise DistributedError(f"there are no other ranks: {reason}")
            return None
        return cls(distributed, on_silence, timeout)

    def gather(self, data: bytes = b"") -> list[bytes]:
        """What each rank gives, by rank; every rank has to call it.

        Raises:
            DistributedError: one is lost. Nothing can be gathered after that.
        """
        with self.waiting():
            self._gathered += 1
            head = np.array([[_MAGIC, self._gathered, len(data), zlib.crc32(data)]])
            heads = self._gather_rows(head)
            # a rank that ends meanwhile is told of in the next collective: this one gives anything
            if (heads[:, :2] != head[:, :2]).any():
                raise self._loss()
            lengths, sums = heads[:, 2].tolist(), heads[:, 3].tolist()
            if not any(lengths):
                return [b""] * self.size
            padded = np.zeros((1, max(lengths)), np.uint8)
            padded[0, : len(data)] = np.frombuffer(data, np.uint8)
            rows = self._gather_rows(padded)
        gathered = [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
        if [zlib.crc32(each) for each in gathered] != sums:
            raise self._loss()
        return gathered

    def _gather_rows(self, row: np.ndarray) -> np.ndarray:
        # a stream of its own, and of this thread's, to which streams belong: what else this process
        # computes would wait for the other ranks, and hold Python's lock meanwhile
        if not hasattr(self._own, "stream"):
            self._own.stream = mx.new_stream(mx.cpu)
        how: dict[str, Any] = {"group": self.distributed, "stream": self._own.stream}
        gathered = mx.distributed.all_gather(mx.array(row), **how)
        mx.eval(gathered)  # which lets other threads run, as NumPy would not
        return np.array(gathered)

    def _loss(self) -> DistributedError:
        self._lost = True
        return DistributedError(_LOST)

    def broadcast(self, data: bytes = b"") -> bytes:
        """What rank 0 gives; every rank has to call it, and errors are as of `gather`."""
        if self.rank:
            data = b""
        with self.waiting():
            self._gathered += 1
            # of zeros, where it is not known: in a ring less is sent so than by gathering it
            head = mx.zeros(4, mx.int64)
            if self.rank == 0:
                head = mx.array([_MAGIC, self._gathered, len(data), zlib.crc32(data)], mx.int64)
            magic, number, length, checksum = self._all_sum(head).tolist()
            if (magic, number) != (_MAGIC, self._gathered):
                raise self._loss()
            if not length:
                return b""
            known = np.frombuffer(data, np.uint8) if data else np.zeros(length, np.uint8)
            told = np.array(self._all_sum(mx.array(known))).tobytes()
        if zlib.crc32(told) != checksum:
            raise self._loss()
        return told

    def confirm(self) -> None:
        """Check that no rank was lost in what was computed together before, which gives anything
        then; every rank has to call it, and errors are as of `gather`."""
        with self.waiting():
            self._gathered += 1
            if self._all_sum(mx.array(self._gathered, mx.int64)).item() != (
                self._gathered * self.size
            ):
                raise self._loss()

    def _all_sum(self, x: mx.array) -> mx.array:
        return mx.distributed.all_sum(x, group=self.distributed, stream=mx.cpu)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for other ranks, evaluated within.

        Raises:
            DistributedError: one is lost. Nothing may wait for them after that, or it would for
                ever.
        """
        if self._lost:
            raise DistributedError(_LOST)
        self._set_deadline(time.monotonic() + self.timeout)
        try:
            yield
        except RuntimeError as error:
            if not tells_loss(error):
                raise
            raise self._loss() from error
        finally:
            self._set_deadline(None)

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Check that all ranks work with the same; every rank has to call it.

        Args:
            facts: what it is -> what tells it apart, such as a version or a digest; none where
                this rank does not have it.

        Raises:
            DistributedError: they do not; the same on every rank.
        """
        check_same([json.loads(said) for said in self.gather(json.dumps(dict(facts)).encode())])

    def _set_deadline(self, deadline: float | None) -> None:
        assert self._guard.stdin is not None
        told = "-" if deadline is None else str(self.timeout + _GRACE_SECONDS)
        with suppress(OSError):  # it has been killed
            os.write(self._guard.stdin.fileno(), f"{told}\n".encode())
        with self._changed:
            self._deadline = deadline
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
                self._deadline = None
            self.on_silence(_SILENT.format(seconds=self.timeout))


@contextmanager
def _ended_by_signals_at_once() -> Iterator[None]:
    """Within it signals end the process, without Python, which could do nothing."""
    left = (None, signal.SIG_IGN)
    changed = [each for each in SIGNALS if signal.getsignal(each) not in left]
    with handled(dict.fromkeys(changed, signal.SIG_DFL)):
        yield


def tells_loss(error: BaseException) -> bool:
    """Whether an error is what MLX says where a rank is lost. Any thread may get it that computes,
    whatever that is: of all that wait for MLX just then, it tells one."""
    return isinstance(error, RuntimeError) and str(error).startswith(_BACKENDS)


def as_loss(error: Exception) -> Exception:
    """The same, but what tells of a lost rank as our own error."""
    return DistributedError(_LOST) if tells_loss(error) else error


def check_same(facts: Sequence[Mapping[str, str]]) -> None:
    """The same, given the facts of all ranks.

    Raises:
        DistributedError: a rank has others; says which, and what.
    """
    ours, *others = facts
    for rank, theirs in enumerate(others, 1):
        for name in dict.fromkeys([*ours, *theirs]):
            first, other = ours.get(name), theirs.get(name)
            if first != other:
                raise DistributedError(_difference(rank, name, first, other))


def _difference(rank: int, name: str, first: str | None, other: str | None) -> str:
    """How a rank differs from rank 0."""
    if other is None:
        return f"rank {rank} does not have {name}, which rank 0 has; all ranks need the same"
    if first is None:
        return f"rank {rank} has {name}, which rank 0 does not have; all ranks need the same"
    return f"{name} is another on rank {rank} ({other}) than on rank 0 ({first})"
