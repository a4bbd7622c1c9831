"""Where to cut a recording that is too long for a model."""

from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from .frames import runs
from .vad import SpeechActivity

# All of these are frames of 20 ms.
#: shortest pause that ends a span, unless somebody knows better. Within sentences people
#: pause 0.2 to 0.7 s for breath or a thought, and the decoder writes these better in one piece; a
#: second is seldom but between sentences.
MIN_SILENCE_FRAMES = 50
LEVEL_FRAMES = 2  #: the level of a place to cut is the mean of these on either side of it
PAUSE_FRAMES = 12  #: shorter silence is no pause: there is such in many a word
#: what a span keeps of a pause beside it: as much as faint speech may take of it, see `chunks.py`
MARGIN_FRAMES = 9
SHORT_FRAMES = 25  #: speech shorter than this is joined to a neighbour
#: and where it cannot be, its span is widened into the pauses around it to this length
WIDENED_FRAMES = 75


@dataclass(frozen=True)
class Span:
    """A part of a recording that a model is given at once, in encoder frames.

    start, end: what it is given, [start, end).
    first, last: where in it there is speech, [first, last).
    pauses: silence in between, [start, end) each.
    section: of the recording, see `parts.py`.
    """

    start: int
    end: int
    first: int
    last: int
    pauses: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    section: int = field(default=0, compare=False)

    @property
    def regions(self) -> list[tuple[int, int]]:
        """Where in it there is speech without a pause, [start, end) each."""
        edges = [self.first, *(edge for pause in self.pauses for edge in pause), self.last]
        return list(zip(edges[::2], edges[1::2], strict=True))


@dataclass
class _Stretch:
    """Speech without a pause that must end it; `pauses` is all silence within, [start, end)."""

    first: int
    last: int
    pauses: list[tuple[int, int]] = field(default_factory=list)

    @property
    def short(self) -> bool:
        return self.last - self.first < SHORT_FRAMES

    @property
    def margin(self) -> int:
        widened = (WIDENED_FRAMES - self.last + self.first) // 2
        return max(MARGIN_FRAMES, widened) if self.short else MARGIN_FRAMES


class Segmenter:
    """Cuts a recording into spans where nobody speaks, while its activity is still
    coming in.

    Every frame with speech is in exactly one span. Spans are in order, do not overlap, and start
    and end at multiples of `window`, save that the last may end where the recording does; long
    pauses between them are in none. How the activity is divided into pushes changes nothing.

    A pause of `min_silence` frames ends a span. A span that would be longer than `max_frames` is
    cut in its longest pause that has a multiple of `window` in it and leaves at least a quarter of
    `max_frames` on both sides; else in its longest with such a multiple; else, in the middle of
    speech, at the multiple of `window` where the level is lowest. Silence shorter than
    `PAUSE_FRAMES` is no pause. Silence at the very beginning or end of the recording that is
    shorter than `min_silence` belongs to the span beside it: a short recording is one span.

    Speech shorter than `SHORT_FRAMES` is joined to the nearer neighbour, if the pause between is
    shorter than twice `min_silence` and both together fit; else its span is widened with silence,
    as far as there is some, to `WIDENED_FRAMES`.

    Args:
        window: frames that a model takes together; cuts are between windows.
        max_frames: longest span; what is no multiple of `window` is rounded down to one.
        min_silence: shortest pause that ends a span; raised to `window`, for there to be a place
            to cut in it.
        first: the first frame that will be pushed.

    Raises:
        InputError: a number is below one, or `max_frames` below `window`.
    """

    def __init__(
        self,
        *,
        window: int,
        max_frames: int,
        min_silence: int = MIN_SILENCE_FRAMES,
        first: int = 0,
    ):
        if window < 1 or min_silence < 1:
            raise InputError(f"window {window} and min_silence {min_silence} must be at least 1")
        if max_frames < window:
            raise InputError(f"max_frames {max_frames} is less than the window of {window} frames")
        self.window = window
        self.max_frames = max_frames // window * window
        self._min_silence = max(min_silence, window)
        self._fair = max(window, self._down(self.max_frames // 4))
        self._near = 2 * self._min_silence
        # after so long a pause nothing that comes can matter to what was before it
        self._far = max(self._near, WIDENED_FRAMES // 2 + MARGIN_FRAMES + 2 * window)
        #: after so long a pause nothing before it can matter to what comes
        self.apart = max(self._far, WIDENED_FRAMES + 2 * window)
        self._frames = first
        self._finished = False
        self._stretches: list[_Stretch] = []
        self._end = first  # of the last span
        self._level = np.zeros(0, np.float32)  # of the latest frames

    @property
    def start(self) -> int:
        """The first frame that may be in a span to come."""
        first = self._stretches[0].first if self._stretches else self._frames
        return self._start(_Stretch(first, first), WIDENED_FRAMES)

    def push(self, activity: SpeechActivity) -> list[Span]:
        """Take in the next frames; returns the spans that are now certain."""
        for first, last in (runs(activity.speech) + self._frames).tolist():
            latest = self._stretches[-1] if self._stretches else None
            if latest is None or first - latest.last >= self._min_silence:
                self._stretches.append(_Stretch(first, last))
                continue
            if first > latest.last:
                latest.pauses.append((latest.last, first))
            latest.last = last
        self._frames += len(activity)
        self._level = np.concatenate([self._level, activity.level])
        spans = self._certain()
        needed = self._stretches[0].first if self._stretches else self._frames
        self._level = self._level[-(self._frames - needed + LEVEL_FRAMES) :]
        return spans

    def finish(self) -> list[Span]:
        """The recording ends here; returns the remaining spans."""
        self._finished = True
        return self._certain()

    def _certain(self) -> list[Span]:
        spans = []
        while self._stretches:
            head = self._stretches[0]
            if not self._fits(head, head):
                if not self._over(0, self._min_silence) and not self._overfull(head):
                    break
                spans.append(self._cut(head))
            elif (joins := self._joins(head)) is None:
                break
            elif joins:
                other = self._stretches.pop(1)
                head.pauses += [(head.last, other.first), *other.pauses]
                head.last = other.last
            else:
                spans.append(self._whole(head))
        return spans

    def _over(self, index: int, silence: int) -> bool:
        """Whether a stretch has ended, as the next or `silence` frames of silence after it show."""
        known = self._frames - self._stretches[index].last
        return self._finished or index + 1 < len(self._stretches) or known >= silence

    def _overfull(self, stretch: _Stretch) -> bool:
        """Whether it is so long that no cut of its first span can be too near its end."""
        longest = self._start(stretch) + self.max_frames
        return stretch.last >= longest + max(self._fair, LEVEL_FRAMES)

    def _fits(self, stretch: _Stretch, following: _Stretch) -> bool:
        """Whether both fit in one span."""
        return self._up(following.last) - self._down(stretch.first) <= self.max_frames

    def _joins(self, head: _Stretch) -> bool | None:
        """Whether the next stretch is to be joined to the first one; None if not yet certain."""
        if not self._over(0, self._far):
            return None
        if len(self._stretches) == 1:
            return False
        other = self._stretches[1]
        pause = other.first - head.last
        if pause >= self._near or not (head.short or other.short) or not self._fits(head, other):
            return False
        if not self._over(1, self._far):
            return None
        if head.short or len(self._stretches) == 2:
            return True
        third = self._stretches[2]
        if third.first - other.last >= pause or not self._fits(other, third):
            return True
        return False if self._over(2, self._far) else None

    def _start(self, stretch: _Stretch, margin: int = MARGIN_FRAMES) -> int:
        """The first frame that its span would like to have; one that fits has some speech."""
        start = max(self._end, self._down(stretch.first - margin))
        if self._end == 0 and stretch.first < self._min_silence:
            start = 0
        return max(start, self._up(stretch.first + 1) - self.max_frames)

    def _whole(self, head: _Stretch) -> Span:
        """The first stretch as one span."""
        del self._stretches[0]
        start = self._start(head, head.margin)
        if self._stretches:
            end = self._end_before(head.last, self._stretches[0].first, head.margin)
        elif self._finished and self._frames - head.last < self._min_silence:
            end = self._frames
        else:
            end = self._up(head.last + head.margin)
        # silence gives way where it does not fit
        end = max(self._up(head.last), min(end, start + self.max_frames))
        end = min(end, self._frames)
        start = min(self._down(head.first), max(start, self._up(end - self.max_frames)))
        self._end = end
        return Span(start, end, head.first, head.last, tuple(head.pauses))

    def _cut(self, head: _Stretch) -> Span:
        """The first span of a stretch that is too long for one; the stretch keeps the rest."""
        start = self._start(head)
        longest = start + self.max_frames
        cuts = [
            (min(self._end_before(*pause), longest), *pause)
            for pause in head.pauses
            if pause[1] - pause[0] >= PAUSE_FRAMES and self._up(pause[0]) <= min(pause[1], longest)
        ]
        fair = [c for c in cuts if start + self._fair <= c[0] <= head.last - self._fair]
        if cuts:
            end, last, first = max(fair or cuts, key=lambda cut: cut[2] - cut[1])
        else:
            low = max(start + self._fair, self._up(head.first + 1))
            high = max(low, min(longest, self._down(head.last - self._fair)))
            end = self._quietest(low, high)
            silent = (pause for pause in head.pauses if pause[0] <= end <= pause[1])
            last, first = next(silent, (end, end))
        within = tuple(pause for pause in head.pauses if pause[1] <= last)
        span = Span(start, end, head.first, last, within)
        head.first = first
        head.pauses = [pause for pause in head.pauses if pause[0] > first]
        self._end = end
        return span

    def _quietest(self, low: int, high: int) -> int:
        """The multiple of `window` in [low, high] with the lowest level around it."""
        oldest = self._frames - self._level.size
        edges = range(low, high + 1, self.window)
        around = [(max(0, e - LEVEL_FRAMES - oldest), e + LEVEL_FRAMES - oldest) for e in edges]
        return edges[np.argmin([self._level[first:last].mean() for first, last in around])]

    def _end_before(self, last: int, first: int, margin: int = MARGIN_FRAMES) -> int:
        """Where the span before a pause, [last, first), ends."""
        end, start = self._up(last + margin), self._down(first - MARGIN_FRAMES)
        return end if end <= start else self._down((last + first + self.window) // 2)

    def _down(self, frame: int) -> int:
        return frame // self.window * self.window

    def _up(self, frame: int) -> int:
        return -(-frame // self.window) * self.window
