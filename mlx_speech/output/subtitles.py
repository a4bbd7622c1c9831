"""Transcripts as subtitles: SubRip (srt) and WebVTT (vtt).

A segment becomes a cue, or several where the options limit what one may show. None overlap; none
reaches over the pause between two segments, but to be shown for as long as reading takes. Lines are
filled word by word; a word longer than a line has one to itself, whole. Who speaks is told in vtt
by markup, of each cue, and in srt by text, at the beginning of each segment.
"""

import html
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby, pairwise, zip_longest
from typing import NamedTuple

from ..errors import InputError
from ..transcription.transcript import Segment, Transcript, Word
from .line_breaking import collapse_spaces, columns, is_rtl, line_breaks

#: an underline waits for the next word over pauses up to this, in s, instead of flickering
LONGEST_HOLD = 0.3
#: a cue is shown for so long, in ms, unless the next one comes before: 20 pictures of a film, the
#: least that subtitlers allow
SHORTEST_CUE_MS = 833

Escape = Callable[[str], str]  #: does to text what a format needs done

_ARROW = re.compile("-{2,}>")


@dataclass(frozen=True)
class SubtitleOptions:
    """What one cue of srt or vtt may show; unset, a whole segment on one line.

    max_line_width: columns in a line; longer text goes on in another line of the same cue.
    max_line_count: lines in a cue, with `max_line_width`; what is over goes on in another cue.
    max_words_per_line: words in a cue, which has one line; not with `max_line_width`.
    highlight_words: underline each word while it is said: a cue for each state.

    All but `max_line_width` need the times of words (`needs_words`).

    Raises:
        InputError: a number is not a whole one above 0, or an option could have no effect.
    """

    max_line_width: int | None = None
    max_line_count: int | None = None
    max_words_per_line: int | None = None
    highlight_words: bool = False

    def __post_init__(self):
        for name in ("max_line_width", "max_line_count", "max_words_per_line"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value > 0):
                raise InputError.must_be(name, value, "a whole number above 0")
        if self.max_line_count is not None and self.max_line_width is None:
            message = "{max_line_count} has no effect without {max_line_width}; give both"
            raise InputError.about(message)
        if self.max_words_per_line is not None and self.max_line_width is not None:
            message = "{max_words_per_line} and {max_line_width} exclude each other; choose one"
            raise InputError.about(message)

    @property
    def needs_words(self) -> str | None:
        """The option that cannot be honoured without the times of words, if one is set."""
        names = ("max_line_count", "max_words_per_line", "highlight_words")
        return next((name for name in names if getattr(self, name)), None)


class Cue(NamedTuple):
    """Text and when to show it, in ms: `start < end`, and no later than the next cue's start."""

    start: int
    end: int
    text: str


def speaker_label(speaker: int | None) -> str:
    """What stands before the text of a speaker, as models write it; nothing if there is none."""
    return "" if speaker is None else f"[Speaker {speaker}]: "


def _voice(speaker: int | None) -> str:
    return "" if speaker is None else f"<v Speaker {speaker}>"


def to_srt(transcript: Transcript, options: SubtitleOptions = SubtitleOptions()) -> str:
    """SubRip. It has no escapes: only an arrow `-->`, which would be a cue's head, becomes `->`.

    Raises:
        InputError: an option needs the times of words, which the transcript does not have.
    """
    cues = enumerate(subtitle_cues(transcript, options, label=speaker_label), 1)
    return "\n".join(f"{n}\n{_times(cue, ',')}\n{_ARROW.sub('->', cue.text)}\n" for n, cue in cues)


def to_vtt(transcript: Transcript, options: SubtitleOptions = SubtitleOptions()) -> str:
    """WebVTT, with `&`, `<` and `>` escaped.

    Raises:
        InputError: an option needs the times of words, which the transcript does not have.
    """
    escape = partial(html.escape, quote=False)
    cues = subtitle_cues(transcript, options, escape, voice=_voice)
    return "\n".join(["WEBVTT\n", *(f"{_times(cue, '.')}\n{cue.text}\n" for cue in cues)])


def subtitle_cues(
    transcript: Transcript,
    options: SubtitleOptions,
    escape: Escape = str,
    label: Callable[[int | None], str] = lambda speaker: "",
    voice: Callable[[int | None], str] = lambda speaker: "",
) -> list[Cue]:
    """The cues of all segments with text, in order.

    Without words, a segment's times are shared out by width and none of it is underlined; so it is
    where the words do not spell the segment's text, which is what counts.

    Args:
        escape: what the format needs done to text, which the underline's `<u>` and `</u>` escape.
        label: what is shown before a segment's text, given its speaker; part of its first line.
        voice: markup of the speaker, before the text of each cue.

    Raises:
        InputError: an option needs the times of words, and no segment has any.
    """
    segments = [segment for segment in transcript.segments if collapse_spaces(segment.text)]
    if options.needs_words and segments and not any(segment.words for segment in segments):
        message = "{option} needs the times of words, which this transcript does not have; "
        message += "transcribe with {word_timestamps}"
        raise InputError.about(message, option=options.needs_words)
    cues: list[Cue] = []
    for segment in segments:
        pieces, timed = _pieces(segment)
        pieces[0] = pieces[0]._replace(label=label(segment.speaker))
        rtl = is_rtl(segment.text)
        for lines in _cues_of_lines(pieces, options):
            for start_s, end_s, word in _states(lines, options.highlight_words and timed):
                start = max(round(1000 * start_s), cues[-1].start + 1 if cues else 0)
                if cues:
                    cues[-1] = cues[-1]._replace(end=min(cues[-1].end, start))
                text = "\n".join(_line_text(line, word, rtl, escape) for line in lines)
                end = max(round(1000 * end_s), start + SHORTEST_CUE_MS)
                cues.append(Cue(start, end, voice(segment.speaker) + text))
    return cues


class _Piece(NamedTuple):
    """Text without a place to break a line, the space after it included; times in s.

    word: which one of its segment it belongs to, counted from 0.
    label: what is shown before it and is not part of the word.
    """

    text: str
    start: float
    end: float
    word: int
    label: str = ""


_Line = list[_Piece]


def _pieces(segment: Segment) -> tuple[list[_Piece], bool]:
    """A segment's text in pieces, and whether their times are those of words."""
    text = collapse_spaces(segment.text)
    breaks = line_breaks(text)
    words = _located(text, breaks, segment.words)
    timed = bool(words)
    if not timed:
        words = [(0, segment.start, segment.end)]
    pieces = []
    spans = pairwise([*words, (len(text), 0.0, 0.0)])
    for number, ((first, start, end), (last, _, _)) in enumerate(spans):
        places = breaks[bisect_left(breaks, first) : bisect_left(breaks, last)]
        parts = [text[a:b] for a, b in pairwise([*places, last])]
        widths = [max(1, columns(part)) for part in parts]
        times = [start + (end - start) * done / sum(widths) for done in accumulate(widths)]
        for index, (part, a, b) in enumerate(zip(parts, [start, *times], times, strict=False)):
            pieces.append(_Piece(part, a, b, number if timed else index))
    return pieces, timed


def _located(text: str, breaks: list[int], words: list[Word]) -> list[tuple[int, float, float]]:
    """Each word's first character, start and end; empty if the words are not those of the text.

    What stands between two words is left to the one that it cannot be broken from. Words that
    cannot be broken from each other count as one.
    """
    found: list[tuple[int, float, float]] = []
    position = 0
    for word in words:
        spelled = collapse_spaces(word.text)
        first = text.find(spelled, position)
        if not spelled or first < 0 or any(c.isalnum() for c in text[position:first]):
            return []
        place = breaks[bisect_right(breaks, first) - 1] if found else 0
        if place >= position:
            found.append((place, word.start, word.end))
        else:
            found[-1] = (*found[-1][:2], word.end)
        position = first + len(spelled)
    return [] if any(c.isalnum() for c in text[position:]) else found


def _cues_of_lines(pieces: list[_Piece], options: SubtitleOptions) -> Iterator[list[_Line]]:
    """What each cue shows: lines of pieces."""
    if words := options.max_words_per_line:
        for _, line in groupby(pieces, lambda piece: piece.word // words):
            yield [list(line)]
        return
    lines: list[_Line] = []
    used = 0
    width = options.max_line_width or math.inf
    for piece in pieces:
        shown = piece.label + piece.text
        if not lines or used + columns(shown.rstrip(" ")) > width:
            lines.append([])
            used = 0
        lines[-1].append(piece)
        used += columns(shown)
    count = options.max_line_count or len(lines)
    for index in range(0, len(lines), count):
        yield lines[index : index + count]


def _states(lines: list[_Line], highlight: bool) -> Iterator[tuple[float, float, int | None]]:
    """Start and end of each state of a cue in s, and the word that is underlined in it."""
    pieces = [piece for line in lines for piece in line]
    if not highlight:
        yield pieces[0].start, pieces[-1].end, None
        return
    words = [list(group) for _, group in groupby(pieces, lambda piece: piece.word)]
    for word, following in zip_longest(words, words[1:]):
        end = word[-1].end
        start = following[0].start if following else end
        held = start - end <= LONGEST_HOLD
        yield word[0].start, start if held else end, word[0].word
        if not held:
            yield end, start, None


def _line_text(line: _Line, underlined: int | None, rtl: bool, escape: Escape) -> str:
    """A line with its markup.

    Players take a line's direction from its first letter. One that begins with a word of the other
    direction than its segment is given a mark, which is invisible, to keep the segment's.
    """
    bare = "".join(piece.label + piece.text for piece in line)
    text = escape(line[0].label)
    for word, group in groupby(line, lambda piece: piece.word):
        part = escape("".join(piece.text for piece in group))
        if word == underlined:
            shown = part.rstrip(" ")
            part = f"<u>{shown}</u>{part[len(shown) :]}"
        text += part
    mark = "" if is_rtl(bare) == rtl else "\u200f" if rtl else "\u200e"
    return mark + text.rstrip(" ")


def _times(cue: Cue, mark: str) -> str:
    return f"{_clock(cue.start, mark)} --> {_clock(cue.end, mark)}"


def _clock(time: int, mark: str) -> str:
    """Hours, minutes, seconds and, after the mark, milliseconds."""
    seconds, milliseconds = divmod(time, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{milliseconds:03}"
