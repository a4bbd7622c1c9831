"""What FFmpeg's libraries log, and why reading failed in their words."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

Messages = list[tuple[int, str, str]]  #: what is logged: (level, who, message) each

_log_lock = threading.Lock()


@contextmanager
def captured_log() -> Iterator[Messages]:
    """Within it, what FFmpeg's libraries log in this thread.

    They are silent by default; their level is one for the process.
    """
    from av import logging

    with _log_lock:
        if logging.get_level() is None:
            logging.set_level(logging.ERROR)
            logging.set_skip_repeated(False)  # it would also skip what the last file had said
    with logging.Capture(local=True) as messages:
        yield messages


def failure_reason(error: Exception, messages: Messages) -> str:
    """Why reading failed, in FFmpeg's words."""
    said = messages[-1][2] if messages else getattr(error, "strerror", None) or str(error)
    return first_line(said)


def first_line(text: str) -> str:
    """The first line of a message, without its stop."""
    lines = text.strip().splitlines() or ["no reason given"]
    return lines[0].strip().rstrip(".")
