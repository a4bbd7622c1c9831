"""The standard streams of the command lines, usable however the program was started."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from ..errors import InputError

# passes on lines but those in which this is found, until nobody can write any more
_FILTER = """
import os, re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
unwanted = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not unwanted.search(line):
        os.write(2, line)
"""


class StandardOutputError(OSError):
    """Standard output takes no more: whatever else was to be written there is lost as well."""


def open_standard_streams() -> None:
    """Make the standard streams usable.

    Where one is closed (`>&-`), the next file that is opened would get its number, which MLX
    refuses for 0, and messages for a missing standard error would go to standard output. A standard
    output that cannot write é shows it escaped, as standard error does; one that fails, on a full
    disk or since nobody reads it, raises `StandardOutputError`, once. A message that cannot be
    written to standard error is lost, and nothing else with it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - open as long as the program
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    # not those that a program put there which calls a command line
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = _StandardOutput(sys.stdout, errors="backslashreplace")
    if type(sys.stderr) is io.TextIOWrapper:
        sys.stderr = _StandardError(sys.stderr, errors=sys.stderr.errors)


class _Stream(io.TextIOWrapper):
    """Another object for an open stream."""

    def __init__(self, stream: io.TextIOWrapper, errors: str | None, *kept: object):
        super().__init__(
            stream.buffer,
            stream.encoding,
            errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._kept = (stream, *kept)  # which would close their streams when they go

    def _failing(self) -> AbstractContextManager[None]:
        """What is around writing."""
        raise NotImplementedError

    def write(self, text: str) -> int:
        with self._failing():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._failing():
            super().flush()


class _StandardOutput(_Stream):
    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # what is left in the buffer is tried again at the end of the program
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            reason = error.errno, error.strerror, "standard output"
            raise StandardOutputError(*reason) from error


class _StandardError(_Stream):
    def _failing(self) -> AbstractContextManager[None]:
        return suppress(OSError)


@contextmanager
def flushed_standard_output() -> Iterator[None]:
    """At its end all is written, or `StandardOutputError` raised; not when Python ends, which
    would have an exit status of its own for that."""
    try:
        yield
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def filter_standard_error(unwanted: str) -> None:
    """Leave out of standard error the lines of libraries in C++ in which a regular expression is
    found; Python's own go there as ever. A process of its own does that, which also passes on why
    this one has crashed."""
    import subprocess

    arguments = [sys.executable, "-ISc", _FILTER, unwanted]
    own = os.dup(2)
    passing = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert passing.stdin is not None
    os.dup2(passing.stdin.fileno(), 2)
    passing.stdin.close()
    stream = open(own, "w", 1, sys.stderr.encoding, "backslashreplace")  # noqa: SIM115
    sys.stderr = _StandardError(stream, stream.errors, sys.stderr, passing)


def need_standard_output(remedy: str = "open it") -> None:
    """Raises `InputError` where results would be lost."""
    if sys.stdout is None:
        raise InputError(f"standard output is closed; {remedy}")


def read_text() -> str:
    """All of standard input.

    Raises:
        InputError: it is no text.
    """
    return decode_utf8(sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8))


def read_lines() -> Iterator[bytes]:
    """Standard input, line by line as it comes."""
    for number, line in enumerate(sys.stdin.buffer):
        yield line if number else line.removeprefix(codecs.BOM_UTF8)


def decode_utf8(data: bytes) -> str:
    """What came on standard input, as text.

    Raises:
        InputError: it is none.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error.reason}") from error
