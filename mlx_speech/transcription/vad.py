"""Voice activity detection (VAD), encoder frame by encoder frame (20 ms each).

Silero VAD tells where somebody speaks, whatever else sounds. Where an encoder has a CTC head, its
letters beside that are speech too.
"""

import math
from dataclasses import dataclass
from typing import Self

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..audio import SAMPLING_RATE
from ..models.silero_vad import WINDOW_SAMPLES, SileroVAD
from .frames import FRAME_SAMPLES, runs

SILENCE_DBFS = -80.0  #: an RMS of less is silence, where full scale is 1
#: speech begins where Silero VAD is surer than this for so many windows in a row, 0.16 s
VAD_THRESHOLD = 0.5
ONSET_WINDOWS = 5
HYSTERESIS = 0.15  #: and goes on, and may have begun before that, where it is less sure by this
BEFORE_ONSET_WINDOWS = 32  #: but no more than so many before, a second
LINK_WINDOWS = 6  #: fewer than these between two that have speech, 0.2 s, have it too
#: and it is a voice where Silero VAD is surer than this share of the threshold for so many windows
#: in a row without what is below so many hertz, too, as over a telephone: chords, melodies and
#: sirens are like one in these alone
VOICE_SHARE = 0.2
VOICE_WINDOWS = 4
LOW_HERTZ = 300
CHECKED_WINDOWS = 16  #: windows that are looked at together for that, with a second before them
#: frames of a recording that Silero VAD is given together, and those before that it is given too
BLOCK_FRAMES = 1600
WARM_UP_FRAMES = 400
#: letters so many frames before speech, and behind it, belong to it: heads write some early
EARLY_FRAMES, LATE_FRAMES = 3, 16
#: what is said of a frame depends on letters, and on other frames, no farther away; a second
REACH_FRAMES = 50
#: RMS that Silero VAD is given, that of the loudest 0.16 s within a second, on either side: of
#: 40 dB less it is less and less sure
_SPEECH_DBFS = -20.0
_MOST_GAIN_DB = 40.0
_LEVEL_SAMPLES, _LEVELS = 5 * WINDOW_SAMPLES, 6


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


class RecordingVAD:
    """Where somebody speaks in a recording, while its samples are still coming in.

    Silero VAD is given blocks of `BLOCK_FRAMES`, each with `WARM_UP_FRAMES` before it and two
    seconds behind it, and remembers nothing else: what is said of a frame depends on no more than
    that, in parts of a recording as in the whole.

    Each frame is of 20 ms; n samples have n / 320 of them, rounded as the Granite encoder's.

    Args:
        threshold: the probability of speech at which it begins.
        first: the frame that the samples begin with.
    """

    def __init__(self, threshold: float = VAD_THRESHOLD, first: int = 0):
        self._threshold, self._silero = threshold, SileroVAD.bundled()
        self._told = first
        # from a window's first sample on
        self._begin = -(-first * FRAME_SAMPLES // WINDOW_SAMPLES) * WINDOW_SAMPLES
        self._skipped = self._begin - first * FRAME_SAMPLES
        self._samples = np.zeros(0, np.float32)

    def push(self, samples: mx.array | np.ndarray) -> SpeechActivity:
        """Take in the next samples, (n,); returns the activity of the frames that are now certain,
        whose `level` is the probability of speech."""
        skipped = min(self._skipped, samples.size)
        self._skipped -= skipped
        self._samples = np.append(self._samples, np.asarray(samples[skipped:], np.float32))
        activity = SpeechActivity.none()
        while self._begin + self._samples.size >= _behind(following := self._block_end):
            activity += self._block(following)
        return activity

    def finish(self) -> SpeechActivity:
        """The recording ends here; returns the activity of the remaining frames."""
        size = self._begin - self._skipped + self._samples.size
        end, activity = (size + FRAME_SAMPLES // 2) // FRAME_SAMPLES, SpeechActivity.none()
        while self._told < end:
            activity += self._block(min(self._block_end, end))
        return activity

    @property
    def _block_end(self) -> int:
        return (self._told // BLOCK_FRAMES + 1) * BLOCK_FRAMES

    def _block(self, end: int) -> SpeechActivity:
        """The activity of the frames of a block that were not told of yet, up to `end`."""
        block = self._told // BLOCK_FRAMES * BLOCK_FRAMES
        begin = max(self._begin, (block - WARM_UP_FRAMES) * FRAME_SAMPLES)
        around = self._samples[begin - self._begin : _behind(end) - self._begin]
        probabilities = _probabilities(self._silero, around)
        middles = np.arange(self._told, end) * FRAME_SAMPLES + FRAME_SAMPLES // 2 - begin
        windows = (middles // WINDOW_SAMPLES).clip(0, max(0, probabilities.size - 1))
        self._told = end
        needed = max(self._begin, (end - WARM_UP_FRAMES) * FRAME_SAMPLES)
        self._samples = self._samples[needed - self._begin :].copy()
        self._begin = needed
        if not probabilities.size:  # a part's first frames, which are of another
            return SpeechActivity(np.zeros(windows.size, bool), np.zeros(windows.size, np.float32))
        speech = self._speech(probabilities, around, windows[0], windows[-1] + 1)
        return SpeechActivity(speech[windows], probabilities[windows])

    def _speech(
        self, probabilities: np.ndarray, samples: np.ndarray, first: int, end: int
    ) -> np.ndarray:
        """Whether windows [first, end) of the samples have speech, (windows,) as all of them."""
        speech = np.zeros(probabilities.size, bool)
        goes_on = probabilities > self._threshold - HYSTERESIS
        for start, stop in runs(~goes_on).tolist():
            if start > 0 and stop < goes_on.size and stop - start < LINK_WINDOWS:
                goes_on[start:stop] = True
        for start, stop in runs(goes_on).tolist():
            if start >= end or stop <= first:
                continue
            found = onsets(probabilities[start:stop] > self._threshold)
            if found and is_voice(self._silero, samples, start, stop, self._threshold):
                speech[start + max(0, found[0] - BEFORE_ONSET_WINDOWS) : stop] = True
        return speech


def is_voice(
    silero: SileroVAD, samples: np.ndarray, start: int, end: int, threshold: float
) -> bool:
    """Whether there is speech in windows [start, end) of samples, (n,), without their low
    frequencies, too."""
    end += VOICE_WINDOWS  # without these it may be later
    for first in range(start, end, CHECKED_WINDOWS):
        before, last = max(0, first - BEFORE_ONSET_WINDOWS), min(end, first + CHECKED_WINDOWS)
        high = _without_low(samples[before * WINDOW_SAMPLES : last * WINDOW_SAMPLES])
        likely = _probabilities(silero, high)[first - before :] > VOICE_SHARE * threshold
        if onsets(likely, VOICE_WINDOWS):
            return True
    return False


def _without_low(samples: np.ndarray) -> np.ndarray:
    """Samples, (n,), without what is below `LOW_HERTZ`."""
    spectrum = np.fft.rfft(samples)
    spectrum[: math.ceil(LOW_HERTZ * samples.size / SAMPLING_RATE)] = 0
    return np.fft.irfft(spectrum, samples.size).astype(np.float32)


def _behind(end: int) -> int:
    """The sample up to which Silero VAD looks to tell about the frames up to `end`."""
    looked_at = end * FRAME_SAMPLES + BEFORE_ONSET_WINDOWS * WINDOW_SAMPLES
    return looked_at + _LEVELS * _LEVEL_SAMPLES


def _probabilities(silero: SileroVAD, samples: np.ndarray) -> np.ndarray:
    """Of speech in each window of samples, (n,), at the level that Silero VAD is to be given them:
    (ceil(n / 512),)."""
    if not samples.size:
        return np.zeros(0, np.float32)
    filled = np.pad(samples - samples.mean(), (0, -samples.size % _LEVEL_SAMPLES))
    powers = np.square(filled, dtype=np.float64).reshape(-1, _LEVEL_SAMPLES).mean(axis=1)
    loudest = sliding_window_view(np.pad(powers, _LEVELS), 2 * _LEVELS + 1).max(axis=1)
    given = filled * np.repeat(gain(loudest), _LEVEL_SAMPLES)
    return np.array(silero(mx.array(given[: samples.size]))[0])


def gain(power: np.ndarray | float) -> np.ndarray:
    """What sound of a power is multiplied by for Silero VAD, float32; silence by 0."""
    decibels = 10 * np.log10(np.asarray(power) + 1e-12)
    factors = 10 ** (np.minimum(_SPEECH_DBFS - decibels, _MOST_GAIN_DB) / 20)
    return np.where(decibels > SILENCE_DBFS, factors, 0).astype(np.float32)


def onsets(begins: np.ndarray, least: int = ONSET_WINDOWS) -> list[int]:
    """Where windows in which speech may begin, (n,), are so many in a row."""
    return [start for start, end in runs(begins).tolist() if end - start >= least]


def widened(speech: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """Speech, (n,), with what letters of a CTC head, (n,), are near it."""
    return speech | letters & spread(speech, EARLY_FRAMES, LATE_FRAMES)


def spread(mask: np.ndarray, before: int, after: int) -> np.ndarray:
    """True also `before` frames before and `after` frames after each that is."""
    total = np.concatenate([[0], np.cumsum(np.pad(mask, (after, before)))])
    return total[before + after + 1 :] > total[: mask.size]
