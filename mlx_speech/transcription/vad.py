"""Voice activity detection (VAD), encoder frame by encoder frame (20 ms each).

Energy and CTC heads tell where there may be speech, and where to cut. What energy takes for speech
may be music, and what a head writes over a siren is no word; whether anybody speaks at all in what
was cut, Silero VAD tells.
"""

from dataclasses import dataclass
from typing import Self

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..models.silero_vad import WINDOW_SAMPLES, SileroVAD
from .frames import FRAME_SAMPLES

SILENCE_DBFS = -80.0  #: quieter frames are silent: RMS from 200 to 6400 Hz, where full scale is 1
CONTRAST_DB = 5.0  #: what speech is above the noise floor, at least
NOISE_FLOOR_FRAMES = 150  #: the noise floor is the level that a fifth of these (3 s) are below
NOISE_FLOOR_QUANTILE = 0.2
SHORTEST_FRAMES = 25  #: a recording of less frames (half a second) has nothing to contrast with
SMOOTHING_FRAMES = 5  #: clicks of less than half as many frames are smoothed away
ONSET_FRAMES = 18  #: sound is speech from so many frames before a letter
RELEASE_FRAMES = 16  #: to so many after one
#: letters are at most a second from their sound, or they are none; nor does any
#: frame depend on what is farther away
REACH_FRAMES = 50
#: those that go on with what was said before have no more frames of silence than this before them
LINK_FRAMES = 12
#: somebody speaks where Silero VAD is surer than this, its authors' threshold, for so many windows
#: in a row (0.13 s). In speech 10 dB over noise it is so of every single digit; one melody in 20
#: has such a stretch, and of three windows one in 8
SPEECH_PROBABILITY = 0.5
SPEECH_WINDOWS = 4
SPEECH_DBFS = -20.0  #: RMS that it is given: from 40 dB less on, it is less and less sure
CHECKED_WINDOWS = 32  #: windows that it is given together, a second; the first that speak suffice
OCTAVES = (4, 8, 16, 32, 64, 128)  #: edges of the octaves from 200 to 6400 Hz, in bins of 50 Hz


@dataclass(frozen=True)
class SpeechActivity:
    """Whether there is speech in each of n frames.

    speech: (n,), boolean.
    level: (n,), float32, the higher the more there is speech; tells the least bad of several bad
        places to cut.
    """

    speech: np.ndarray
    level: np.ndarray

    @classmethod
    def none(cls) -> Self:
        """That of no frames."""
        return cls(np.zeros(0, bool), np.zeros(0, np.float32))

    def __len__(self) -> int:
        return self.speech.size

    def __getitem__(self, frames: slice) -> Self:
        return type(self)(self.speech[frames], self.level[frames])

    def __add__(self, later: Self) -> Self:
        speech = np.concatenate([self.speech, later.speech])
        return type(self)(speech, np.concatenate([self.level, later.level]))


def ctc_vad(ctc_logits: mx.array, blank: int = 0, space: int | None = None) -> SpeechActivity:
    """What a CTC head detects: speech is where its likeliest label is a part of a word.

    Args:
        ctc_logits: (frames, labels).
        blank: the label for nothing.
        space: the label between words, if there is one; where it is likely is the least bad place
            to cut running speech.

    Returns:
        `level` is the probability of all other labels, less that of the space.
    """
    if not len(ctc_logits):  # the last blocks of an encoder wait for their first frames
        return SpeechActivity.none()
    probabilities = mx.softmax(ctc_logits.astype(mx.float32), axis=-1)
    likeliest = mx.argmax(ctc_logits, axis=-1)
    speech, level = likeliest != blank, 1.0 - probabilities[:, blank]
    if space is not None:
        speech = speech & (likeliest != space)
        level = level - 2.0 * probabilities[:, space]
    return SpeechActivity(np.array(speech), np.array(level))


def has_speech(samples: mx.array, silero: SileroVAD) -> bool:
    """Whether somebody speaks in (n,) samples at 16 kHz, however loud or quiet they are."""
    samples = samples.astype(mx.float32)
    samples = samples - samples.mean()
    gain = 10 ** (SPEECH_DBFS / 20) / (mx.sqrt(mx.square(samples).mean()) + 1e-9)
    step = CHECKED_WINDOWS * WINDOW_SAMPLES
    state, in_a_row = None, 0
    for start in range(0, samples.size, step):
        probabilities, state = silero(gain * samples[start : start + step], state)
        for probability in probabilities.tolist():
            in_a_row = in_a_row + 1 if probability > SPEECH_PROBABILITY else 0
            if in_a_row == SPEECH_WINDOWS:
                return True
    return False


class EnergyVAD:
    """What the energy of the samples tells, while they are still coming in.

    A frame has speech where its RMS between 200 and 6400 Hz is above `SILENCE_DBFS`, and its level
    is at least `CONTRAST_DB` above the noise floor both of the 3 s up to it and of the 3 s from it
    on: speech has gaps and weak sounds everywhere, noise and hum have none, not even where they set
    in or end. The level is the mean of the dBFS of five octaves, so that noise of any colour is as
    steady, and speech stands out in the octaves where the noise is weak. RMS and level are medians
    over five frames.

    Each frame is of 20 ms; n samples have n / 320 of them, rounded as the Granite encoder's.
    """

    def __init__(self):
        self._samples = np.zeros(0, np.float32)  # the latest
        self._new = 0  # of them are in no frame yet
        self._decibels = np.zeros((0, 2), np.float32)  # level and RMS of the latest frames
        self._oldest = 0  # the frame of the first of these
        self._done = 0  # frames told about

    def push(self, samples: mx.array | np.ndarray) -> SpeechActivity:
        """Take in the next samples, (n,); returns the activity of the frames that are now certain,
        which is the latest 3 s too late. Memory grows with the samples of one push."""
        samples = np.concatenate([self._samples, np.asarray(samples, np.float32)])
        first = self._samples.size - self._new
        whole = (samples.size - first) // FRAME_SAMPLES * FRAME_SAMPLES
        self._add(samples[first : first + whole])
        # a frame of samples stays: the recording's last frame may need some of them again
        self._samples = samples[max(0, first + whole - FRAME_SAMPLES) :]
        self._new = samples.size - first - whole
        return self._certain(
            self._oldest + len(self._decibels) - SMOOTHING_FRAMES // 2 - NOISE_FLOOR_FRAMES + 1
        )

    def finish(self) -> SpeechActivity:
        """The recording ends here; returns the activity of the remaining frames."""
        if 2 * self._new >= FRAME_SAMPLES:
            # zeros after the end would make a step, which sounds; earlier samples do not
            latest = self._samples[-FRAME_SAMPLES:]
            self._add(np.pad(latest, (FRAME_SAMPLES - latest.size, 0)))
        return self._certain(self._oldest + len(self._decibels))

    def _add(self, samples: np.ndarray) -> None:
        """Level and RMS of whole frames."""
        window = np.hanning(FRAME_SAMPLES + 1)[:-1].astype(np.float32)
        spectrum = np.fft.rfft(samples.reshape(-1, FRAME_SAMPLES) * window)
        power = np.square(np.abs(spectrum[:, : OCTAVES[-1]])) * (
            2 / FRAME_SAMPLES / np.square(window).sum()
        )
        octaves = np.add.reduceat(power, OCTAVES[:-1], axis=1) + 1e-13
        decibels = 10 * np.log10([np.exp(np.log(octaves).mean(axis=1)), octaves.sum(axis=1)])
        self._decibels = np.concatenate([self._decibels, decibels.T.astype(np.float32)])

    def _certain(self, end: int) -> SpeechActivity:
        """The activity of the frames from the last call's up to `end`."""
        start, self._done = self._done, max(self._done, end)
        if self._done == start:
            return SpeechActivity.none()
        reach = SMOOTHING_FRAMES // 2
        around = np.pad(self._decibels, ((reach, reach), (0, 0)), mode="reflect")
        around = np.sort(sliding_window_view(around, SMOOTHING_FRAMES, axis=0), axis=-1)
        level, rms = around[..., reach].T.copy()
        size = min(NOISE_FLOOR_FRAMES, level.size)
        rank = int(NOISE_FLOOR_QUANTILE * size)
        floor = np.partition(sliding_window_view(level, size), rank, axis=1)[:, rank]
        frames = np.arange(start, self._done) - self._oldest
        speech = rms[frames] > SILENCE_DBFS
        if self._oldest + level.size >= SHORTEST_FRAMES:
            past = floor[np.maximum(frames - size + 1, 0)]
            future = floor[np.minimum(frames, floor.size - 1)]
            speech &= level[frames] >= np.maximum(past, future) + CONTRAST_DB
        needed = max(self._oldest, self._done - NOISE_FLOOR_FRAMES - SMOOTHING_FRAMES)
        self._decibels = self._decibels[needed - self._oldest :]
        self._oldest = needed
        return SpeechActivity(speech, level[frames])


class SpeechRegions:
    """The speech regions that a CTC head detects, while it and the energy are still coming in.

    The head's letters are peaks: they tell what is speech, the energy how far it reaches. Speech
    are the frames with sound from `ONSET_FRAMES` before a letter to `RELEASE_FRAMES` after one, and
    letters without sound, which noise may hide. Of these do not count: those that sound follows
    within `REACH_FRAMES` and that do not go on with earlier sound (`LINK_FRAMES`, from letter to
    letter), since heads may place the first letters of a word before it; and those that have no
    sound within `REACH_FRAMES` on either side, since some mutter over noise.
    """

    def __init__(self):
        self._letters, self._sound = SpeechActivity.none(), np.zeros(0, bool)
        self._before = 0  # frames at their beginning that were told about already

    def push(
        self, letters: SpeechActivity, sound: np.ndarray, last: bool = False
    ) -> SpeechActivity:
        """Take in the next frames; returns what is now certain, `REACH_FRAMES` frames late.

        Args:
            letters: what the head says of n frames.
            sound: (n,) what the energy tells of them.
            last: the recording ends with them.

        Returns:
            `speech` is what the class describes, `level` that of the letters.
        """
        self._letters += letters
        self._sound = np.concatenate([self._sound, sound])
        detected = self._letters.speech & spread(self._sound, REACH_FRAMES, REACH_FRAMES)
        speech = spread(detected, ONSET_FRAMES, RELEASE_FRAMES) & self._sound
        silence = ~spread(detected | self._sound, 0, LINK_FRAMES)
        goes_on = spread(self._sound, 0, REACH_FRAMES) & (_latest(self._sound) > _latest(silence))
        speech |= detected & (goes_on | ~spread(self._sound, REACH_FRAMES, 0))
        end = len(self._letters) - (0 if last else REACH_FRAMES)
        certain = slice(self._before, max(self._before, end))
        result = SpeechActivity(speech[certain], self._letters.level[certain])
        forgotten = max(0, certain.stop - REACH_FRAMES)
        self._letters, self._sound = self._letters[forgotten:], self._sound[forgotten:]
        self._before = certain.stop - forgotten
        return result


def spread(mask: np.ndarray, before: int, after: int) -> np.ndarray:
    """True also `before` frames before and `after` frames after each that is."""
    total = np.concatenate([[0], np.cumsum(np.pad(mask, (after, before)))])
    return total[before + after + 1 :] > total[: mask.size]


def _latest(mask: np.ndarray) -> np.ndarray:
    """Of each frame the latest one up to it that is, -1 if there is none."""
    return np.maximum.accumulate(np.where(mask, np.arange(mask.size), -1))
