"""Lines that are typed in a terminal: edited, recalled, kept for the next time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROMPT = "> "
HISTORY_LINES = 1000


def read_line() -> str:
    """A line from the terminal."""
    if sys.stdout.isatty():
        return input(PROMPT)
    # `input` would write it among the replies
    print(PROMPT, end="", file=sys.stderr, flush=True)
    return input()


def forget_interrupt() -> None:
    """Have a Ctrl-C that was dealt with not be the exit status in the end.

    Where one comes while Python runs source text, as it does to make a dataclass or a named tuple
    of a module that is being imported, it ends with SIGINT, whatever became of the exception;
    unless it runs some more.
    """
    exec("pass")


@contextmanager
def line_history() -> Iterator[None]:
    """Within it, lines can be edited and recalled, also those of chats before."""
    try:
        import readline
    except ImportError:
        yield
        return
    # to recall lines is a comfort: a chat goes on without it where the file cannot be had
    unavailable = suppress(OSError, RuntimeError)
    with unavailable:
        readline.read_history_file(history_file())
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with unavailable:
            history_file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            readline.write_history_file(history_file())


def history_file() -> Path:
    """Where the lines of earlier chats are.

    Raises:
        RuntimeError: the user has no home.
    """
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mlx_speech" / "chat_history"
