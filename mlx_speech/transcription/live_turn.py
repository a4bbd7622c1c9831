"""What somebody says until a pause, while it is still being said: where its segments end, and what
the CTC head writes of them."""

from dataclasses import dataclass, replace

import numpy as np

from .alignment import split_words
from .frames import FRAMES_PER_SECOND
from .live_encoder import LiveEncoder
from .live_vad import LiveVAD
from .segmenter import MARGIN_FRAMES, Segmenter, Span
from .vad import LATE_FRAMES, SpeechActivity, widened

#: speech that has become too long is cut within this part of it, so that there are places to choose
#: from, and none is so near its end that the rest would be too short
_CUT_WITHIN = 0.8
_NEVER = 1 << 30  # frames of a pause that there is none of
#: a letter that has others of so many frames behind it will stay
_SURE_FRAMES = 15


class LiveTurn:
    """Speech without a pause that ends it, in one segment, or several where it is long.

    Speech are the frames where Silero VAD detects it, and letters of the CTC head beside these
    (`widened`).

    Args:
        first: the frame to begin with, in which nobody speaks yet.
        onset: where somebody does.
        longest: seconds of speech that are cut.

    Attributes:
        first: the first frame of the open segment.
        onset: the first one with speech.
        last: the end of the latest speech.
    """

    def __init__(self, encoder: LiveEncoder, vad: LiveVAD, first: int, onset: int, longest: float):
        self._encoder, self._vad = encoder, vad
        window = encoder.span_frames
        self.first = first
        self.onset = self.last = max(first, onset)
        longest_frames = max(window, int(_CUT_WITHIN * longest * FRAMES_PER_SECOND))
        self._segmenter = Segmenter(window=window, max_frames=longest_frames, min_silence=_NEVER)
        self._begin = self._told = first  # the segmenter's first frame, and the next it is told of
        encoder.start(first)

    @property
    def silence(self) -> int:
        """For how many frames nobody has spoken now."""
        return self._encoder.end - self.last

    @property
    def seconds(self) -> float:
        """How long the open segment is."""
        return (self._encoder.end - self.first) / FRAMES_PER_SECOND

    def advance(self) -> list[Span]:
        """Look at what was encoded meanwhile; returns the spans of the segments that have ended."""
        encoder, first = self._encoder, self._told
        activity = self._activity(first, encoder.end)
        if activity.speech.any():
            self.last = first + int(activity.speech.nonzero()[0][-1]) + 1
        # silence waits until there is speech behind it
        certain = max(first, min(encoder.end - encoder.hold_back, self.last))
        self._told = certain
        return self._absolute(self._segmenter.push(activity[: certain - first]))

    def finish(self) -> list[Span]:
        """It ends here; returns the spans of the remaining segments."""
        end = -(-(self.last + MARGIN_FRAMES) // self._encoder.span_frames)
        end = max(self._told, min(self._encoder.end, end * self._encoder.span_frames))
        spans = self._segmenter.push(self._activity(self._told, end)) + self._segmenter.finish()
        return self._absolute(spans)

    def cut(self, span: Span) -> None:
        """Go on with the segment after one that has ended."""
        self.first, self.onset = span.end, max(span.end, span.last)
        self._encoder.drop(span.end)

    def _activity(self, first: int, end: int) -> SpeechActivity:
        letters = self._encoder.activity(first, end)
        known = max(self._begin, first - LATE_FRAMES)
        detected = self._vad.speech(known, end)
        heads = np.pad(letters.speech, (first - known, 0))
        return replace(letters, speech=widened(detected, heads)[first - known :])

    def _absolute(self, spans: list[Span]) -> list[Span]:
        """Spans of the segmenter, counted from the beginning of the audio."""
        by = self._begin
        return [
            Span(
                span.start + by,
                span.end + by,
                span.first + by,
                span.last + by,
                tuple((start + by, end + by) for start, end in span.pauses),
            )
            for span in spans
        ]


@dataclass
class LiveText:
    """What the CTC head writes of a segment.

    certain: what of it changes no more: whole words.
    partial: what comes after that.
    sure: whether something is written that will hardly vanish.
    segment_id, shown: for its events: the number of the segment, and the latest partial text.
    """

    encoder: LiveEncoder
    certain: str = ""
    partial: str = ""
    sure: bool = False
    segment_id: int | None = None
    shown: str = ""

    def __post_init__(self):
        self._labels: list[int] = []  # that change no more
        self._labelled = self.encoder.first

    def advance(self, end: int | None = None) -> str:
        """Look at what was encoded meanwhile; returns what is certain now.

        Args:
            end: the segment ends there, and nothing is uncertain any more.
        """
        encoder, size = self.encoder, self.encoder.label_frames
        last = encoder.end if end is None else end
        kept = max(self._labelled, last if end is not None else last - encoder.hold_back)
        kept = self._labelled + (kept - self._labelled) // size * size
        self._labels += encoder.labels(self._labelled, kept)
        self._labelled = kept
        labels = self._labels + encoder.labels(kept, last)
        if not self.sure:
            known = max(0, len(labels) - _SURE_FRAMES // size)
            self.sure = bool(encoder.text(labels if end is not None else labels[:known]))
        text = encoder.text(labels)
        before = self.certain
        certain = text if end is not None else _whole_words(encoder.text(self._labels))
        if certain.startswith(before) and text.startswith(certain):
            self.certain = certain
        self.partial = text[len(self.certain) :] if text.startswith(self.certain) else ""
        return self.certain[len(before) :]


def _whole_words(text: str) -> str:
    """All but the last word, which may go on."""
    words = split_words(text)
    return text[: words[-2][1]] if len(words) > 1 else ""
