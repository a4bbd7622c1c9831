"""What signals do, for a while."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  #: that end a program

Handler = Callable[[int, FrameType | None], object] | int | None


@contextmanager
def handled(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Within it, signals are handled so.

    Python handles signals in its main thread only: in others, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within it Ctrl-C, SIGTERM and SIGHUP wait, and come at its end."""
    came: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    try:
        with handled({number: lambda *signalled: came.append(signalled) for number in handlers}):
            yield
    finally:
        for first, frame in came[:1]:
            handlers[signal.Signals(first)](first, frame)
