"""How far the recordings are, on standard error: a bar in a terminal, else a line now and then."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..errors import one_line

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows one recording after the other.

    Args:
        total: how many there are.
        silent: show nothing, but still know how far it is.
        bar: a bar instead of lines.
    """

    def __init__(self, total: int, *, silent: bool, bar: bool):
        self._total, self._silent, self._bar = total, silent, bar
        self._told = time.monotonic()
        #: the recording in work, and the seconds of it that are done and that there are
        self.name, self.done, self.duration = "", 0.0, 0.0

    @contextmanager
    def recording(self, index: int, name: str) -> Iterator[Callable[[float, float], None]]:
        """Within it one recording is in work; gives what to call with the seconds of it that are
        done and that there are."""
        self.name, self.done, self.duration = name, 0.0, 0.0
        title = f"[{index}/{self._total}] {name}" if self._total > 1 else name
        start, bar = time.monotonic(), None

        def update(done: float, duration: float) -> None:
            nonlocal bar
            self.done, self.duration = done, duration
            now = time.monotonic()
            speed = done / max(now - start, 1e-3)
            if self._silent:
                pass
            elif self._bar:
                bar = bar or _bar(title, duration)
                bar.set_postfix_str(f"{speed:.1f} x real time", refresh=False)
                bar.update(done - bar.n)
            elif now - self._told >= SECONDS_BETWEEN_LINES and done:
                self._told = now
                left = f"{speed:.1f} x real time, {clock((duration - done) / speed)} left"
                line = f"{title}: {clock(done)} of {clock(duration)}, {left}"
                print(one_line(line), file=sys.stderr)

        try:
            yield update
        finally:
            if bar is not None:
                bar.close()


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
