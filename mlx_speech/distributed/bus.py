"""Messages among ranks while they work: a thread that gathers them, again and again.

All ranks get all messages, their own included, in the same order: what they conclude from these
needs no further agreement. And as none can fall silent unnoticed, it tells that they are there.
"""

import json
import queue
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import DistributedError, one_line
from .group import Group, check_same

SECONDS_BETWEEN_ROUNDS = 0.1  #: while nobody says anything
_PART_BYTES = 1 << 20  # of what a rank has to say in one round
_SIZES = struct.Struct("<IQ")  # of the content as JSON, and of the data


@dataclass(frozen=True)
class Message:
    """What one rank told all.

    rank: its number.
    content: what JSON can say.
    data: bytes beside it.
    """

    rank: int
    content: Any
    data: bytes = b""


class Bus:
    """See above. `start` it; from then on the group is its own until it is `close`d.

    `post` and `receive` may be called by any thread.
    """

    def __init__(self, group: Group):
        self.group = group
        self._outbox = bytearray()
        self._inbox: queue.Queue[Message | Exception] = queue.Queue()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)

    def start(self) -> None:
        """Begin to exchange messages."""
        self._thread.start()

    def post(self, content: Any, data: bytes = b"") -> None:
        """Tell all ranks something; returns at once."""
        self._post([content], data)

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None if there was none for `timeout` seconds.

        Raises:
            DistributedError: a rank is lost, or says that it has failed; whenever this is called
                from then on.
        """
        if self._failure is not None:
            raise self._failure
        try:
            received = self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(received, Exception):
            self._failure = received
            raise received
        return received

    def check_same(self, facts: Mapping[str, str]) -> None:
        """As `Group.check_same`, but takes whatever time the others need before they call it. It
        has to be the first that a rank says.

        Raises:
            DistributedError: ranks do not work with the same; a rank is lost, or has failed.
        """
        self.post(dict(facts))
        said: dict[int, Mapping[str, str]] = {}
        while len(said) < self.group.size:
            message = self.receive()
            assert message is not None, "there is no timeout"
            said[message.rank] = message.content
        check_same([said[rank] for rank in range(self.group.size)])

    def fail(self, error: BaseException) -> None:
        """Tell the others what ends this rank, and end; they get a `DistributedError`."""
        reason = one_line(str(error) or repr(error))
        if isinstance(error, KeyboardInterrupt | SystemExit):
            reason = "a signal has ended it"
        self._post({"failed": reason})
        self.close()

    def close(self) -> None:
        """Say no more, and wait until all others have closed theirs, or one has failed."""
        self._post(None)
        self._thread.join()

    def _post(self, content: Any, data: bytes = b"") -> None:
        text = json.dumps(content).encode()
        with self._lock:
            self._outbox += _SIZES.pack(len(text), len(data)) + text + data
        self._wake.set()

    def _run(self) -> None:
        open_ranks = set(range(self.group.size))
        incoming = [bytearray() for _ in range(self.group.size)]
        try:
            spoken = False
            while open_ranks:
                if not spoken:
                    self._wake.wait(SECONDS_BETWEEN_ROUNDS)
                with self._lock:
                    part = bytes(self._outbox[:_PART_BYTES])
                    del self._outbox[:_PART_BYTES]
                    if not self._outbox:
                        self._wake.clear()
                parts = self.group.gather(part)
                spoken = any(parts)
                for rank, (stream, more) in enumerate(zip(incoming, parts, strict=True)):
                    stream += more
                    for content, data in _whole(stream):
                        if content is None:
                            open_ranks.discard(rank)
                        elif isinstance(content, dict):
                            raise DistributedError(f"rank {rank} has failed: {content['failed']}")
                        else:
                            self._inbox.put(Message(rank, content[0], data))
        except Exception as error:
            self._inbox.put(error)
        finally:
            mx.clear_streams()  # or the process may abort at exit


@contextmanager
def exchanging(group: Group) -> Iterator[Bus]:
    """A bus among the ranks, which is closed at the end, for which they wait for each other. Where
    something is raised in it, the others are told, and do not wait."""
    bus = Bus(group)
    bus.start()
    try:
        yield bus
    except BaseException as error:
        bus.fail(error)
        raise
    bus.close()


@contextmanager
def attended(group: Group) -> Iterator[None]:
    """Around what takes each rank a time of its own, such as reading a model, all ranks being at
    the same: they know meanwhile that the others are there, and wait for each other at its end.

    Raises:
        DistributedError: a rank is lost, or something was raised in it.
    """
    with exchanging(group) as bus:
        yield
    bus.receive(0)


def _whole(stream: bytearray) -> list[tuple[Any, bytes]]:
    """The messages at the beginning of a stream that are there as a whole, which leave it."""
    found = []
    while len(stream) >= _SIZES.size:
        text, data = _SIZES.unpack_from(stream)
        end = _SIZES.size + text + data
        if len(stream) < end:
            break
        content = json.loads(stream[_SIZES.size : _SIZES.size + text])
        found.append((content, bytes(stream[_SIZES.size + text : end])))
        del stream[:end]
    return found
