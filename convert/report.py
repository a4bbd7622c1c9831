"""What a check found, as a table for a terminal and for a model card."""

import textwrap
from collections.abc import Sequence

from mlx_speech.checkpoint.folder import printable
from mlx_speech.errors import shortened

from .check import CheckReport
from .plan import size

WIDTH = 80
_NAME_WIDTH, _STAGE_WIDTH = 22, 11


def check_table(report: CheckReport) -> str:
    """The report in lines of at most 80 columns, without a newline at its end."""
    lines = [_line(*row) for row in _rows(report, "total")]
    lines += ["", f"{'':<{_NAME_WIDTH}}{'weights':>10}{'load':>10}"]
    for name, loaded in (("original", report.original), ("converted", report.converted)):
        seconds = f"{loaded.load_seconds:.2f} s"
        lines.append(f"{name:<{_NAME_WIDTH}}{size(loaded.size):>10}{seconds:>10}")
    for recording in report.recordings:
        if recording.original != recording.converted:
            lines += ["", fitting_name(recording.name, WIDTH)]
            for label in ("original", "converted"):
                text = getattr(recording, label) or "(nothing)"
                first = f"  {label + ':':<11}"
                lines += textwrap.wrap(
                    text, WIDTH, initial_indent=first, subsequent_indent=" " * 13
                )
    return "\n".join(lines)


def check_markdown(report: CheckReport) -> str:
    """The same as tables of a model card, without transcripts."""
    heads, *rows = _rows(report, "**total**")
    lines = [
        f"| {' | '.join([name.replace('|', chr(92) + '|'), *cells])} |"
        for name, cells in (heads, *rows)
    ]
    lines.insert(1, "|---|" + "---:|" * len(heads[1]))
    lines += ["", "| | weights | load |", "|---|---:|---:|"]
    for name, loaded in (("original", report.original), ("converted", report.converted)):
        lines.append(f"| {name} | {size(loaded.size)} | {loaded.load_seconds:.2f} s |")
    return "\n".join(lines)


def _rows(report: CheckReport, total: str) -> list[tuple[str, list[str]]]:
    """Heads, recordings and all of them together: words, errors, the stages that there are (empty
    where nothing was compared) and divergence."""
    stages = list(report.total.squares)
    rows = [("recording", ["words", "WER %", *stages, "KL"])]
    named = [(recording.name, recording.difference) for recording in report.recordings]
    for name, difference in [*named, (total, report.total)]:
        errors = [difference.relative_error(stage) for stage in stages]
        compared = ["" if error is None else f"{error:.1e}" for error in errors]
        wer, kl = f"{difference.wer:.1f}", f"{difference.kl:.1e}"
        rows.append((name, [str(difference.words), wer, *compared, kl]))
    return rows


def _line(name: str, cells: Sequence[str]) -> str:
    words, wer, *others = cells
    name = fitting_name(name, _NAME_WIDTH - 1)
    numbers = "".join(f"{cell:>{_STAGE_WIDTH}}" for cell in others)
    return f"{name:<{_NAME_WIDTH}}{words:>6}{wer:>7}{numbers}"


def fitting_name(name: str, width: int) -> str:
    """A file name on one line, its middle left out if it is long."""
    return shortened(printable(name), width)
