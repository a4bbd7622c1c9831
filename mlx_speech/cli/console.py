"""What the command lines say on standard error, and how much of it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import MlxSpeechError

if TYPE_CHECKING:
    from ..generation.text import GenerationResponse

#: what options are called on the command line, where that differs in more than dashes
_SPELLED = {"max_new_tokens": "--max-tokens", "stop_strings": "--stop"}


def as_option(name: str) -> str:
    """A name of the library's as it is spelled on the command line."""
    return _SPELLED.get(name, f"--{name.replace('_', '-')}")


def display_name(source: str | os.PathLike) -> str:
    """A file name, or `-`, in a message; what would break the line is escaped."""
    name = os.fspath(source)
    name = "standard input" if name == "-" else name
    return name if name and name.isprintable() else repr(name)


class Console:
    """Standard error: errors always, warnings and notes unless --quiet, details with --verbose.

    Args:
        args: of a command line that has `add_console_options`.
    """

    def __init__(self, args: argparse.Namespace):
        self.quiet, self.verbose, self.debug = args.quiet, args.verbose, args.debug
        self._options = vars(args).keys()

    def detail(self, message: str) -> None:
        """Something that only --verbose tells."""
        if self.verbose:
            print(message, file=sys.stderr)

    def note(self, message: str) -> None:
        """Something to know, unless --quiet."""
        if not self.quiet:
            print(message, file=sys.stderr)

    def warn(self, message: str) -> None:
        """A warning, unless --quiet."""
        self.note(f"warning: {message}")

    def error(self, error: Exception, source: str | None = None) -> int:
        """One line about an error, with --debug also where it came from; the exit status.

        Args:
            source: the input that it is about.
        """
        if self.debug:
            traceback.print_exception(error)
        message = str(error)
        if isinstance(error, MlxSpeechError):
            message = error.spelled(lambda n: as_option(n) if n in self._options else n)
        elif isinstance(error, OSError) and error.strerror:
            message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        if source is not None and display_name(source) not in message:
            message = f"{display_name(source)}: {message}"
        print(f"error: {message}", file=sys.stderr)
        return 1

    def speed(self, response: GenerationResponse) -> None:
        """What an answer took, told by its last response."""
        prompt, answer = response.prompt_tokens, response.generation_tokens
        self.detail(f"prompt: {prompt} tokens, {response.prompt_tps:.1f} tokens per second")
        self.detail(f"generation: {answer} tokens, {response.generation_tps:.1f} tokens per second")
        self.detail(f"peak memory: {response.peak_memory:.2f} GB")

    def prompt_progress(self) -> dict[str, Callable[[int, int], None]]:
        """The option that makes --verbose show on a terminal how far a long prompt is."""
        if not (self.verbose and sys.stderr.isatty()):
            return {}

        def show(done: int, total: int) -> None:
            self.status(f"prompt: {done} of {total} tokens" if done < total else "")

        return {"prompt_progress_callback": show}

    def status(self, text: str) -> None:
        """A line of a terminal that the next one replaces; none to leave it empty."""
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
