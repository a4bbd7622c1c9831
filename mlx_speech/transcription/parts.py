"""Parts of a long recording that several processes transcribe, one each, without a word to each
other: together they give exactly what one process gives.

What a frame's encoding and activity depend on reaches so far to either side and no farther, and a
pause that is long enough makes the segmenter forget (`Segmenter.apart`). So a part has the speech
from the first such pause at or after its beginning to the first at or after its end, and whoever
begins to encode far enough before its beginning finds the same frames, pause and spans there.

The last digits of a probability, and where two tokens are as good as each other also the text,
depend on what a chunk is decoded together with. So chunks are, in one process too, decoded together
with others of their section of the recording only, and parts are of whole sections.
"""

import math
from dataclasses import dataclass

import numpy as np

from .frames import FRAMES_PER_SECOND, runs
from .vad import BLOCK_FRAMES, REACH_FRAMES, WARM_UP_FRAMES, SpeechActivity

SECTION_FRAMES = 30000  #: ten minutes: a batch that has to end sooner costs a percent or more
#: of what is gone through for a part, its own share is four fifths at least
_SHARE = 4


@dataclass(frozen=True)
class Part:
    """Frames [begin, end) of a recording, of 20 ms each; by default all of them.

    end: None where the recording ends, wherever that is.

    Its speech is that from the first long pause at or after `begin` to the first at or after `end`.
    One without such a pause has none, and the part before it goes on through it.
    """

    begin: int = 0
    end: int | None = None

    def seconds(self, duration: float) -> tuple[float, float]:
        """Where it begins and ends in a recording of so many seconds, both within it."""
        end = math.inf if self.end is None else self.end / FRAMES_PER_SECOND
        return min(self.begin / FRAMES_PER_SECOND, duration), min(end, duration)


WHOLE = Part()


def split(duration: float, number: int, least: float | None) -> list[Part]:
    """Parts of a recording, of whole sections, as long as each other as far as that allows.

    Args:
        duration: seconds. Where the recording is shorter, the last parts are empty; where it is
            longer, the last part is.
        number: of parts at most.
        least: seconds that a part has at least, see `least_part`; None: it cannot be divided.
    """
    sections = duration * FRAMES_PER_SECOND / SECTION_FRAMES
    number = 1 if least is None else min(number, int(duration / least), int(sections))
    begins = [round(index * sections / number) * SECTION_FRAMES for index in range(1, number)]
    return [Part(*edges) for edges in zip([0, *begins], [*begins, None], strict=True)]


@dataclass(frozen=True)
class Halo:
    """What has to be gone through beyond a part's ends; frames of 20 ms.

    push_frames: that are taken together.
    block_frames: whatever is taken together otherwise is so at multiples of these.
    reach_frames: that what is said of a frame depends on, to either side, at most.
    """

    push_frames: int
    block_frames: int = 1
    reach_frames: int = 0

    def start(self, part: Part) -> int:
        """The frame to begin at for a part, a multiple of `block_frames`."""
        return max(0, part.begin - self._before) // self.block_frames * self.block_frames

    @property
    def _before(self) -> int:
        """Frames to be gone through before a part.

        Arrays of other shapes may be rounded otherwise. Each stage of an encoding gives less than
        later up to and in the first push in which it gives anything; from the next on it computes
        what it does for the whole recording in the same shapes. All that matters comes after that.
        """
        encoder = self.push_frames + self.reach_frames + 2 * self.block_frames
        return REACH_FRAMES + max(encoder, BLOCK_FRAMES + WARM_UP_FRAMES)

    @property
    def least_part(self) -> float:
        """The least sensible length of a part, in seconds, given that much beyond its ends."""
        after = max(self.reach_frames + self.push_frames, 2 * BLOCK_FRAMES)
        return _SHARE * (self._before + self.block_frames + after) / FRAMES_PER_SECOND


class OwnSpeech:
    """Takes the speech of others out of a part's activity, while that is coming in.

    Args:
        first: the first frame that comes in.
        pause: frames of a pause that divides sections, and parts.
    """

    def __init__(self, part: Part, first: int, pause: int):
        self._part, self._pause = part, pause
        self._frames = self._silent = first  # the next one, and since when there is silence
        self._edge = 0  # the first one of a section or part that no pause was found for yet
        self._sections: list[tuple[int, int]] = []  # where the next one may begin, and its number
        self._own = False
        #: whether all of it has come in
        self.ended = False

    def push(self, activity: SpeechActivity, written: np.ndarray) -> SpeechActivity:
        """Take in the next frames; returns them, those of others without speech.

        Args:
            written: (n,) boolean: frames that are in no pause, speech or not.
        """
        speech = activity.speech.copy()
        for first, last in runs(speech | written).tolist():
            self._look(self._frames + first)
            speech[first:last] &= self._own
            self._silent = self._frames + last
        self._frames += len(activity)
        self._look(self._frames)
        return SpeechActivity(speech, activity.level)

    def section(self, frame: int) -> int:
        """The number of the section that a frame with speech is in, no frame before which will be
        asked for."""
        while len(self._sections) > 1 and self._sections[1][0] <= frame:
            del self._sections[0]
        return self._sections[0][1]

    def _look(self, frame: int) -> None:
        """There is silence up to a frame: which sections and parts the pause divides."""
        begin, end = self._part.begin, self._part.end
        while not self._edge or frame - max(self._silent, self._edge) >= self._pause:
            edge = self._edge
            self._sections.append((frame, edge // SECTION_FRAMES))
            self.ended = end is not None and edge >= end
            self._own = begin <= edge and not self.ended
            following = (edge // SECTION_FRAMES + 1) * SECTION_FRAMES
            self._edge = min(e for e in (begin, end or 0, following) if e > edge)
