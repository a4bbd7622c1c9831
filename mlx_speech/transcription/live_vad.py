"""Voice activity while audio is still coming in: at once, without what comes after it."""

import mlx.core as mx
import numpy as np

from ..audio import SAMPLING_RATE
from ..models.silero_vad import WINDOW_SAMPLES, SileroVAD
from ..models.silero_vad.model import State
from .frames import FRAME_SAMPLES, runs
from .vad import HYSTERESIS, ONSET_WINDOWS, VOICE_WINDOWS, gain, is_voice, onsets

#: what was louder than now counts for the gain, half as much after so many seconds
_HALF_LIFE_SECONDS = 1.0
#: what may be no voice waits for so many windows, a second
_DOUBTED_WINDOWS = 32


class LiveVAD:
    """Silero VAD on audio at `SAMPLING_RATE` that is still coming in.

    As it is less and less sure of quiet speech, it is given that louder, as the latest seconds need
    it.

    Args:
        threshold: the probability of speech at which it begins.
    """

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._silero = SileroVAD.bundled()
        mx.eval(self._silero.parameters())  # now: what is lazy belongs to this thread
        self._state: State | None = None
        self._power = 0.0
        # of windows of 32 ms, from this one on: their samples, and whether speech may begin, does,
        # and may go on there
        self._first = 0
        self._samples = np.zeros(0, np.float32)
        self._begins, self._voiced = np.zeros(0, bool), np.zeros(0, bool)
        self._goes_on = np.zeros(0, bool)

    def push(self, samples: np.ndarray) -> None:
        """Take in the next samples, (n,): whole windows, unless they are the last."""
        if not samples.size:
            return
        samples = np.pad(samples, (0, -samples.size % WINDOW_SAMPLES))
        power = float(np.square(samples, dtype=np.float64).mean())
        kept = 0.5 ** (samples.size / SAMPLING_RATE / _HALF_LIFE_SECONDS)
        self._power = max(power, kept * self._power)
        given = mx.array(samples * gain(self._power))
        probabilities, state = self._silero(given, self._state)
        mx.eval(probabilities, state)
        self._state = state
        sure = np.array(probabilities)
        self._samples = np.append(self._samples, samples)
        self._begins = np.append(self._begins, sure > self._threshold)
        self._goes_on = np.append(self._goes_on, sure > self._threshold - HYSTERESIS)
        told = self._voiced.size
        self._voiced = np.append(self._voiced, np.zeros(sure.size, bool))
        for start, end in runs(self._begins).tolist():
            if end > told - VOICE_WINDOWS:
                since = max(start, told - _DOUBTED_WINDOWS)
                if self._voiced[start:told].any() or self._is_voice(since, end):
                    self._voiced[since:end] = True

    def _is_voice(self, start: int, end: int) -> bool:
        enough = end - start >= ONSET_WINDOWS
        return enough and is_voice(self._silero, self._samples, start, end, self._threshold)

    def onset(self, first: int) -> int | None:
        """Where somebody has begun to speak in the frames from one on, if so."""
        skipped = self._skipped(first)
        found = onsets(self._voiced[skipped:])
        return self._frame(skipped + found[0]) if found else None

    def earliest_onset(self, first: int) -> int:
        """The earliest frame that `onset` may give once more has come."""
        skipped = self._skipped(first)
        found = (runs(self._begins[skipped:]) + skipped).tolist()
        size = self._begins.size
        for start, end in found:
            if end == size or (end > size - VOICE_WINDOWS and not self._voiced[end - 1]):
                return self._frame(max(start, size - _DOUBTED_WINDOWS))
        return self._frame(size)

    def speech(self, first: int, end: int) -> np.ndarray:
        """Whether somebody who speaks goes on in frames [first, end): (end - first,) booleans."""
        middles = np.arange(first, end) * FRAME_SAMPLES + FRAME_SAMPLES // 2
        windows = middles // WINDOW_SAMPLES - self._first
        return self._goes_on[windows.clip(0, len(self._goes_on) - 1)]

    def forget(self, before: int) -> None:
        """Let go of the frames before one."""
        number = max(0, before * FRAME_SAMPLES // WINDOW_SAMPLES - self._first)
        self._samples = self._samples[number * WINDOW_SAMPLES :].copy()
        self._begins, self._voiced = self._begins[number:].copy(), self._voiced[number:].copy()
        self._goes_on = self._goes_on[number:].copy()
        self._first += number

    def _skipped(self, first: int) -> int:
        """Windows that are there before a frame."""
        return max(0, -(-first * FRAME_SAMPLES // WINDOW_SAMPLES) - self._first)

    def _frame(self, window: int) -> int:
        return (self._first + window) * WINDOW_SAMPLES // FRAME_SAMPLES
