"""What the command lines say on standard error, and how much of it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..distributed.launched import rank_of_launch
from ..errors import MlxSpeechError, one_line

if TYPE_CHECKING:
    from ..generation.text import GenerationResponse

#: what options are called on the command line, where that differs in more than dashes
_SPELLED = {"max_new_tokens": "--max-tokens", "stop_strings": "--stop", "draft": "--no-draft"}


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
    Each is one line (see `one_line`). Of several ranks, all but the first tell errors alone.

    Args:
        args: of a command line that has `add_console_options`; none before they are known.
    """

    def __init__(self, args: argparse.Namespace | None = None):
        options = {} if args is None else vars(args)
        self.quiet, self.verbose, self.debug = (
            options.get(name, False) for name in ("quiet", "verbose", "debug")
        )
        self._options = options.keys()
        self._rank = rank_of_launch() or 0

    def say(self, message: str) -> None:
        """Something that is told whatever the options."""
        if not self._rank:
            print(one_line(message), file=sys.stderr)

    def detail(self, message: str) -> None:
        """Something that only --verbose tells."""
        if self.verbose:
            self.say(message)

    def note(self, message: str) -> None:
        """Something to know, unless --quiet."""
        if not self.quiet:
            self.say(message)

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
        message = self.spelled(error)
        if source is not None and display_name(source) not in message:
            message = f"{display_name(source)}: {message}"
        who = f"rank {self._rank}: " if self._rank else ""
        print(one_line(f"error: {who}{message}"), file=sys.stderr, flush=True)
        return 1

    def spelled(self, error: Exception) -> str:
        """What is told of an error, in terms of the command line."""
        if isinstance(error, MlxSpeechError):
            return error.spelled(lambda n: as_option(n) if n in self._options else n)
        if isinstance(error, OSError) and error.strerror:
            return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return str(error)

    @contextmanager
    def showing_warnings(self) -> Iterator[None]:
        """Within it, warnings that the library gives are among these."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where, **to: self.warn(str(message))
            yield

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
