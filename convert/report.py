"""What a check found, as a table for a terminal and for a model card."""

import textwrap
from collections.abc import Sequence

from mlx_speech.checkpoint.folder import printable
from mlx_speech.errors import shortened

from .check import STAGES, CheckReport, Difference
from .plan import size

WIDTH = 80
_COLUMNS = ("words", "WER %", *STAGES, "KL")
_NAME_WIDTH = 22


def check_table(report: CheckReport) -> str:
    """The report in lines of at most 80 columns, without a newline at its end."""
    rows = [(recording.name, recording.difference) for recording in report.recordings]
    lines = [_line("recording", _COLUMNS)]
    lines += [_line(name, _cells(difference)) for name, difference in rows]
    lines.append(_line("total", _cells(report.total)))
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
    stages = [stage for stage in STAGES if stage in report.total.squares]
    lines = [
        f"| recording | words | WER % | {' | '.join(stages)} | KL |",
        "|---|" + "---:|" * (len(stages) + 3),
    ]
    named = [(recording.name, recording.difference) for recording in report.recordings]
    for name, difference in [*named, ("**total**", report.total)]:
        cells = _cells(difference, stages)
        lines.append(f"| {' | '.join([name.replace('|', chr(92) + '|'), *cells])} |")
    lines += ["", "| | weights | load |", "|---|---:|---:|"]
    for name, loaded in (("original", report.original), ("converted", report.converted)):
        lines.append(f"| {name} | {size(loaded.size)} | {loaded.load_seconds:.2f} s |")
    return "\n".join(lines)


def _cells(difference: Difference, stages: Sequence[str] = STAGES) -> list[str]:
    """Words, errors, stages (empty where nothing was compared) and divergence."""
    errors = [difference.relative_error(stage) for stage in stages]
    compared = ["" if error is None else f"{error:.1e}" for error in errors]
    return [str(difference.words), f"{difference.wer:.1f}", *compared, f"{difference.kl:.1e}"]


def _line(name: str, cells) -> str:
    words, wer, encoder, projector, logits, kl = cells
    name = fitting_name(name, _NAME_WIDTH - 1)
    numbers = f"{words:>6}{wer:>7}{encoder:>9}{projector:>11}{logits:>14}{kl:>9}"
    return f"{name:<{_NAME_WIDTH}}{numbers}"


def fitting_name(name: str, width: int) -> str:
    """A file name on one line, its middle left out if it is long."""
    return shortened(printable(name), width)
