"""How far the recordings are, on standard error: a bar in a terminal, else a line now and then."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from ..errors import one_line

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows one recording after the other, or all of them at once.

    Args:
        total: how many there are.
        silent: show nothing, but still know how far it is.
        bar: a bar instead of lines.
    """

    def __init__(self, total: int, *, silent: bool, bar: bool):
        self._total, self._silent, self._with_bar = total, silent, bar
        self._told = time.monotonic()
        self._bar: Any = None  # that is shown
        #: what is in work, and the seconds of it that are done and that there are
        self.name, self.done, self.duration = "", 0.0, 0.0

    def recording(
        self, index: int, name: str
    ) -> AbstractContextManager[Callable[[float, float], None]]:
        """Within it one recording is in work; gives what to call with the seconds of it that are
        done and that there are."""
        return self._showing(name, f"[{index}/{self._total}] {name}" if self._total > 1 else name)

    def everything(self, first: str) -> AbstractContextManager[Callable[[float, float], None]]:
        """The same for all of them together.

        Args:
            first: the name of the first, which is told where there are no others.
        """
        title = f"{self._total} recordings" if self._total > 1 else first
        return self._showing(title, title)

    @contextmanager
    def _showing(self, name: str, title: str) -> Iterator[Callable[[float, float], None]]:
        self.name, self.done, self.duration = name, 0.0, 0.0
        start = time.monotonic()

        def update(done: float, duration: float) -> None:
            self.done, self.duration = done, duration
            now = time.monotonic()
            speed = done / max(now - start, 1e-3)
            if self._silent:
                pass
            elif self._with_bar:
                self._bar = self._bar or _bar(title, duration)
                self._bar.set_postfix_str(f"{speed:.1f} x real time", refresh=False)
                self._bar.total = duration
                self._bar.update(done - self._bar.n)
            elif now - self._told >= SECONDS_BETWEEN_LINES and done:
                self._told = now
                left = f"{speed:.1f} x real time, {clock((duration - done) / speed)} left"
                line = f"{title}: {clock(done)} of {clock(duration)}, {left}"
                print(one_line(line), file=sys.stderr)

        try:
            yield update
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Within it something else may be printed: there is no bar."""
        if self._bar is not None:
            self._bar.clear()
        yield
        if self._bar is not None:
            self._bar.refresh()


def _bar(title: str, duration: float):
    from tqdm import tqdm

    known = False
    with suppress(OSError):
        known = all(os.get_terminal_size(sys.stderr.fileno()))
    # terminals that do not tell their size would get no bar at all
    width = {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}
    return tqdm(
        # of 80 columns, numbers take 40
        desc=title if len(title) <= 30 else title[:10] + "..." + title[-17:],
        total=duration,
        file=sys.stderr,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}",
        **width,
    )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 0:01:30."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
