"""Live text on standard output: a line that grows, lines, or events as JSON."""

import json
import shutil
from dataclasses import dataclass
from typing import Any

from ..output.line_breaking import collapse_spaces, columns
from ..output.writers import segment_data
from ..transcription.live import LiveEvent

_CLEAR_LINE, _DIM, _PLAIN = "\r\x1b[K", "\x1b[2m", "\x1b[22m"


def print_event(event: LiveEvent) -> None:
    """An event as an object of JSON on a line of its own."""
    data: dict[str, Any] = {"type": event.kind, "segment": event.segment_id}
    data["time"] = round(event.time, 3)
    if event.kind in ("partial", "committed", "corrected"):
        data["text"] = event.text
    if event.segment is not None:
        data |= segment_data(event.segment)
    print(json.dumps(data, ensure_ascii=False, allow_nan=False), flush=True)


def print_segment(event: LiveEvent) -> None:
    """The text of a segment, once it is final."""
    if event.kind == "corrected" and (text := collapse_spaces(event.text)):
        print(text, flush=True)


@dataclass
class LiveLine:
    """The open segment on one line of a terminal, what may still change of it dimmed; the final
    text takes its place."""

    committed: str = ""
    partial: str = ""

    def __call__(self, event: LiveEvent) -> None:
        """Show what an event says."""
        if event.kind == "committed":
            self.committed, self.partial = self.committed + event.text, ""
        elif event.kind == "partial":
            self.partial = event.text
        elif event.kind == "corrected":
            self.clear()
            print_segment(event)
        if event.kind in ("committed", "partial"):
            width = shutil.get_terminal_size().columns - 1
            certain, uncertain = cut_to(self.committed, self.partial, width)
            dimmed = f"{_DIM}{uncertain}{_PLAIN}" if uncertain else ""
            print(f"{_CLEAR_LINE}{certain}{dimmed}", end="", flush=True)

    def clear(self) -> None:
        """Leave the line empty."""
        if self.committed or self.partial:
            self.committed = self.partial = ""
            print(_CLEAR_LINE, end="", flush=True)


def cut_to(certain: str, uncertain: str, width: int) -> tuple[str, str]:
    """The end of a text in two parts, as much of it as fits so many columns."""
    certain, whole = collapse_spaces(certain), collapse_spaces(certain + uncertain)
    start = 0
    if columns(whole) > width:
        # a column is the mark's
        start = next(at for at in range(len(whole) + 1) if columns(whole[at:]) < width)
        whole, certain = "…" + whole[start:], "…" + certain[start:]
    return whole[: len(certain)], whole[len(certain) :]
