"""Tags in the answers of Granite Speech Plus: who speaks, and when each word ends.

`[Speaker 1]: good morning [Speaker 2]: hello` and `good [T:45] morning [T:91] _ [T:140]`, as it was
taught; what it writes now and then differs. So tags are read as leniently as can be without taking
a word for one: every word of an answer is in what the parsers give, and what was irregular is told.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

LONGEST_TAG = 24  #: characters, at least as many as the longest that is read as a tag has
# at the very end of an answer, tags of which the limit on tokens has left only the beginning
_SPEAKER = re.compile(
    r"\[ ?speaker ?[:#]? ?(\d{1,6}) ?(?:\] ?:?|:)"
    r"|\[ ?(?:s|sp|spe|spea|speak|speake|speaker ?\d{0,6}\]?)? ?$",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"\[ ?T ?(?:: ?(\d{0,9}) ?\]?|(\d{1,9}) ?\])|\[ ?(?:T ?)?$",
    re.IGNORECASE,
)
_WORD = re.compile(r"\S+")
_SILENCE = "_"  #: what is written in place of a word where nobody speaks
WRAP_CS = 1000  #: times are told modulo this, in hundredths of a second
#: a time that is earlier than the one before by more is of the next round; else it is wrong
LARGEST_NOISE_CS = 500


class Turn(NamedTuple):
    """What one speaker says in a row.

    speaker: number; None where nobody was named yet.
    text: without tags or white space around it, of `span` in the answer: first and last character.
    start: where in the answer its tag begins.
    """

    speaker: int | None
    text: str
    span: tuple[int, int]
    start: int


class TaggedWord(NamedTuple):
    """A word and when it was said, in seconds; `span` in the answer: first and last character."""

    text: str
    start: float
    end: float
    span: tuple[int, int]


def parse_turns(
    answer: str, speaking: int | None = None, known: int = 0
) -> tuple[list[Turn], list[str]]:
    """The turns of an answer, none of them empty, and what was irregular about its tags.

    Args:
        speaking: who speaks before the first tag: the one whose turn this goes on with.
        known: how many speakers there are so far; they are numbered in order of appearance.
    """
    turns: list[Turn] = []
    remarks = []
    marks = list(_SPEAKER.finditer(answer))
    starts = [0, *(mark.start() for mark in marks)]
    texts = zip([0, *(mark.end() for mark in marks)], [*starts[1:], len(answer)], strict=True)
    for start, mark, (first, last) in zip(starts, [None, *marks], texts, strict=True):
        if mark is not None and mark[1] is None:
            remarks.append(f"the tag {mark[0]!r} is cut off")
            continue
        if mark is not None:
            speaking = int(mark[1])
            if not 1 <= speaking <= known + 1:
                remarks.append(f"speaker {speaking} is named after {known} speakers")
            known = max(known, speaking)
        text, (first, last) = _stripped(answer, first, last)
        if text:
            turns.append(Turn(speaking, text, (first, last), start))
            if speaking is None:
                remarks.append("there is text before the first speaker's tag")
            if "[" in text:
                remarks.append("there is a bracket that begins no tag")
        elif mark is not None:
            remarks.append(f"speaker {speaking} is named and says nothing")
    return turns, remarks


def named_speakers(answer: str) -> list[int]:
    """The speaker of each tag of an answer, whether anything is said behind it or not."""
    return [int(mark[1]) for mark in _SPEAKER.finditer(answer) if mark[1]]


def parse_words(answer: str, duration: float) -> tuple[list[TaggedWord], list[str]]:
    """The words of an answer, whose times never go back, and what was irregular about its tags.

    A tag tells when the word before it ends, which begins where the tag before did; under 10 s
    modulo 10 s, else as it is. A time that cannot be is as none: words without a time share the
    stretch up to the next known one by their lengths.

    Args:
        duration: of the audio, in seconds, in which all times are.
    """
    words: list[TaggedWord] = []
    remarks = []
    pending: list[tuple[int, int]] = []  # words since the last known time, as spans
    wrong = []
    clock, end = 0, round(100 * duration)
    position = 0
    answer = _SPEAKER.sub(lambda mark: " " * len(mark[0]), answer)
    for mark in _TIME.finditer(answer):
        pending += _word_spans(answer, position, mark.start())
        position = mark.end()
        told = mark[1] or mark[2]
        cut_off = position == len(answer) and not mark[0].endswith("]")
        if not told or cut_off:
            remarks.append(f"the tag {mark[0].strip()!r} has no time")
            continue
        time = _unwrapped(int(told), clock)
        if time is None or time > end + WRAP_CS // 10:
            wrong.append(f"{told} after {clock}")
            continue
        time = min(time, end)
        words += _shared(answer, pending, clock, time)
        clock, pending = max(clock, time), []
    pending += _word_spans(answer, position, len(answer))
    if wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        remarks.append(f"a time cannot be: {wrong[0]}{others}")
    if any(answer[first:last] != _SILENCE for first, last in pending):
        remarks.append("the last words have no time")
        words += _shared(answer, pending, clock, max(clock, end))
    return words, remarks


def settled(answer: str) -> str:
    """The beginning of an answer that is still being written, which ends neither within a word nor
    where there may be a tag."""
    opening = answer.rfind("[")
    if 0 <= opening > len(answer) - LONGEST_TAG:
        return answer[:opening]
    return answer[: max((space.start() for space in re.finditer(r"\s", answer)), default=0)]


def _stripped(answer: str, first: int, last: int) -> tuple[str, tuple[int, int]]:
    part = answer[first:last]
    first += len(part) - len(part.lstrip())
    text = part.strip()
    return text, (first, first + len(text))


def _word_spans(answer: str, first: int, last: int) -> list[tuple[int, int]]:
    return [word.span() for word in _WORD.finditer(answer, first, last)]


def _unwrapped(told: int, clock: int) -> int | None:
    """The time that a tag means, after `clock`, in hundredths of a second; None: it is noise."""
    if told >= WRAP_CS:
        return told if told >= clock else None
    time = clock // WRAP_CS * WRAP_CS + told
    if time >= clock:
        return time
    return time + WRAP_CS if clock - time > LARGEST_NOISE_CS else None


def _shared(
    answer: str, spans: Sequence[tuple[int, int]], start: int, end: int
) -> Iterator[TaggedWord]:
    """Words that share a stretch of time, in hundredths of a second, by their lengths."""
    done = list(accumulate((last - first for first, last in spans), initial=0))
    for (first, last), before, after in zip(spans, done, done[1:], strict=False):
        begin, until = (start + (end - start) * part / done[-1] for part in (before, after))
        if answer[first:last] != _SILENCE:
            yield TaggedWord(answer[first:last], begin / 100, until / 100, (first, last))
