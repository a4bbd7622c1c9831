"""A picture of a transcript over its recording: why a cut or a time is where it is.

Each row shows a stretch of time: the segments with their text, the waveform with the pauses shaded
and the segments' ends as lines across it, and below it the words.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, UnsupportedOptionError
from ..files import check_name, replacing
from .line_breaking import collapse_spaces, columns
from .subtitles import speaker_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..transcription.transcript import Segment, Transcript

Read = Callable[[int, int], Any]  #: gives samples `start` to `end` of a recording, (n,)
Extent = tuple[float, float]  #: where something begins in a direction, and how far it goes

#: a row shows this much, in s, or more where the rows would otherwise be too many
ROW_SECONDS = 20.0
MAX_ROWS = 60
#: inches; at 100 dots per inch, a picture has at most 2000 x 7840 dots
WIDTH, ROW_HEIGHT, BESIDES, DOTS_PER_INCH = 20.0, 1.3, 0.4, 100
MARGIN, BETWEEN_ROWS = 0.2, 0.2
#: highest and lowest samples per row; the memory for a recording's does not grow with its length
ENVELOPE_POINTS = 2000
BLOCK = 1 << 20  #: samples read at once

#: heights in a row, where the waveform is between -1 and 1
SEGMENT_BAND = (1.15, 0.6)
WORD_LANES = ((-1.5, 0.4), (-1.95, 0.4), (-2.4, 0.4))
BOTTOM, TOP = -2.5, 1.85
COLUMN_INCHES = 0.065  #: inches that a column of 7-point text takes, on the safe side
#: families that have what matplotlib's own has not, where they are installed
FONTS = ("Arial Unicode MS", "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans Arabic")


def plot_transcript(
    path: Path, read: Read, sampling_rate: float, transcript: Transcript, *, overwrite: bool = True
) -> None:
    """Draw a transcript over its recording into a PNG file, which is written whole or not at all.

    Args:
        path: of the file, which ends in .png.
        read: gives samples of the recording.
        sampling_rate: of the samples, in Hz.
        transcript: what is drawn: its `duration`, pauses between its `regions`, segments and words.
        overwrite: whether a file that is there may be replaced.

    Raises:
        InputError: the file's name does not end in .png or is too long, or the file exists.
        OSError: the file cannot be written.
        UnsupportedOptionError: matplotlib is not installed.
    """
    check_plot(path)
    figure = draw_transcript(read, sampling_rate, transcript)
    with replacing(path, overwrite=overwrite) as temporary, warnings.catch_warnings():
        # a character that no font has is drawn as a box
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(temporary, format="png", metadata={"Software": None})


def check_plot(path: Path) -> None:
    """Whether a picture can be drawn to the path, to be known before any work is done for it.

    Raises:
        InputError: the file's name does not end in .png, or is too long.
        UnsupportedOptionError: matplotlib is not installed.
    """
    check_name(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"a picture is a PNG file; give {path} a name that ends in .png")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        message = "a picture needs matplotlib; install it: pip install 'mlx-speech[plot]'"
        raise UnsupportedOptionError(message) from error


def draw_transcript(read: Read, sampling_rate: float, transcript: Transcript) -> Figure:
    """The figure of `plot_transcript`, one axes for each row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names

    duration = max(transcript.duration, 1 / sampling_rate)
    count = min(MAX_ROWS, math.ceil(duration / ROW_SECONDS))
    # a short recording fills its row; many rows are equally long, the last one's rest is empty
    seconds = duration if count == 1 else max(ROW_SECONDS, duration / count)
    height = count * ROW_HEIGHT + BESIDES
    figure = Figure((WIDTH, height), DOTS_PER_INCH)
    FigureCanvasAgg(figure)  # draws without a display
    rows = figure.subplots(count, 1, squeeze=False)[:, 0]
    figure.subplots_adjust(
        left=MARGIN / WIDTH,
        right=1 - MARGIN / WIDTH,
        bottom=BESIDES / height,
        top=1 - MARGIN / height,
        hspace=BETWEEN_ROWS * count / (height - BESIDES - MARGIN - BETWEEN_ROWS * (count - 1)),
    )
    installed = set(get_font_names())
    fonts = ["DejaVu Sans", *(font for font in FONTS if font in installed)]
    starts = [seconds * index for index in range(count)]
    ends = [min(start + seconds, transcript.duration) for start in starts]
    envelopes = [
        _envelope(read, round(start * sampling_rate), round(end * sampling_rate))
        for start, end in zip(starts, ends, strict=True)
    ]
    peak = max(float(np.abs(envelope).max(initial=0)) for _, envelope in envelopes)
    loudness = f"{20 * math.log10(peak):.0f} dBFS" if peak else "silence"
    pauses = _pauses(transcript)
    for row, start, (samples, envelope) in zip(rows, starts, envelopes, strict=True):
        row.set(xlim=(start, start + seconds), ylim=(BOTTOM, TOP), yticks=[])
        row.tick_params(labelsize=7)
        times, (low, high) = samples / sampling_rate, envelope / (peak or 1.0)
        row.fill_between(times, low, high, color="tab:blue", linewidth=0.3, gid="wave")
        _bars(row, pauses, (-1.0, 2.0), "0.85", "pauses").set_zorder(0)
        _draw_segments(row, transcript.segments, fonts)
        _draw_words(row, transcript.segments, fonts)
    rows[-1].set_xlabel("seconds", fontsize=8)
    legend = "segments above, words below; dashed: where segments begin and end; shaded: pauses"
    rows[0].set_title(f"{legend}; loudest: {loudness}", fontsize=8)
    return figure


def _envelope(read: Read, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples' numbers (n,) and the lowest and highest of those from each on, (2, n)."""
    step = max(1, math.ceil((end - start) / ENVELOPE_POINTS))
    block = step * max(1, BLOCK // step)
    parts = []
    for first in range(start, end, block):
        samples = np.asarray(read(first, min(first + block, end)), dtype=np.float32)
        edges = np.arange(0, samples.size, step)
        parts.append([f.reduceat(samples, edges) for f in (np.minimum, np.maximum)])
    envelope = np.concatenate(parts, axis=1) if parts else np.zeros((2, 0), dtype=np.float32)
    return start + step * np.arange(envelope.shape[1]), envelope


def _pauses(transcript: Transcript) -> list[Extent]:
    """Stretches without speech, in s; none where nobody knows."""
    if transcript.regions is None:
        return []
    edges = [0.0, *(edge for region in transcript.regions for edge in region), transcript.duration]
    return [(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _bars(row: Axes, spans: list[Extent], height: Extent, color: str, gid: str) -> Any:
    """Bars for those of the spans that the row shows."""
    left, right = row.get_xlim()
    shown = [(start, length) for start, length in spans if start < right and start + length > left]
    return row.broken_barh(shown, height, color=color, linewidth=0, gid=gid)


def _draw_segments(row: Axes, segments: list[Segment], fonts: list[str]) -> None:
    """Bars with as much of the text as fits, and lines where segments begin and end."""
    bottom, height = SEGMENT_BAND
    left, right = row.get_xlim()
    spans = [(segment.start, segment.end - segment.start) for segment in segments]
    _bars(row, spans, SEGMENT_BAND, "tab:green", "segments").set_alpha(0.35)
    ends = {time for segment in segments for time in (segment.start, segment.end)}
    shown = [time for time in sorted(ends) if left <= time <= right]
    row.vlines(shown, -1, bottom + height, "tab:green", "dashed", linewidth=0.8, gid="cuts")
    for segment in segments:
        start, end = max(segment.start, left), min(segment.end, right)
        if start < end:
            text = speaker_label(segment.speaker) + collapse_spaces(segment.text)
            text = _fitting(text, (end - start) * _columns_per_second(row))
            _text(row, start, bottom + height / 2, text, fonts, "segment text")


def _draw_words(row: Axes, segments: list[Segment], fonts: list[str]) -> None:
    """A bar for each word, in the first lane that has room for it, and its text if one has."""
    left, right = row.get_xlim()
    words = [w for segment in segments for w in segment.words if w.start < right and w.end > left]
    spans: list[list[Extent]] = [[] for _ in WORD_LANES]
    free = [-math.inf] * len(WORD_LANES)
    for number, word in enumerate(words):
        text, start = collapse_spaces(word.text), max(word.start, left)
        end = max(word.end, start + columns(text) / _columns_per_second(row))
        lane = next((k for k, until in enumerate(free) if until <= start), None)
        if lane is None:
            lane = number % len(WORD_LANES)
        elif end <= right:
            bottom, height = WORD_LANES[lane]
            _text(row, start, bottom + height / 2, text, fonts, "word text")
            free[lane] = end
        spans[lane].append((word.start, word.end - word.start))
    for in_lane, extent in zip(spans, WORD_LANES, strict=True):
        _bars(row, in_lane, extent, "tab:orange", "words").set_alpha(0.5)


def _columns_per_second(row: Axes) -> float:
    left, right = row.get_xlim()
    return (WIDTH - 2 * MARGIN) / COLUMN_INCHES / (right - left)


def _fitting(text: str, width: float) -> str:
    """The text, or what is left of it in `width` columns."""
    ends = list(accumulate(columns(character) for character in text))
    if not ends or ends[-1] <= width:
        return text
    kept = text[: bisect_right(ends, width - 1)]
    return kept and kept.rstrip() + "…"


def _text(row: Axes, x: float, y: float, text: str, fonts: list[str], gid: str) -> None:
    row.text(
        x, y, text, fontsize=7, family=fonts, va="center", clip_on=True, parse_math=False, gid=gid
    )
