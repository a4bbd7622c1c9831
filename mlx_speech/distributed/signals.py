"""What ranks do together, and no signal leaves halfway."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  #: that end a program


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within it Ctrl-C, SIGTERM and SIGHUP wait, and come at its end.

    Python handles signals in its main thread only: in others, nothing needs to be done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handled = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handled:
        signal.signal(number, lambda *signalled: came.append(signalled))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        for first, frame in came[:1]:
            handled[signal.Signals(first)](first, frame)
