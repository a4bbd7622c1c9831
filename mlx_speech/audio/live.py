"""Samples that are still coming in -> mono float32 samples at the models' rate, the latest kept."""

import mlx.core as mx
import numpy as np

from ..errors import AudioError
from .load import SAMPLING_RATE, as_floats
from .recording import checked_rate, not_finite, refuse_integers

_NAME = "the audio"


class SampleStream:
    """Samples of any rate -> float32 samples at `SAMPLING_RATE`, as they come.

    What comes out does not depend on how the samples are divided into pushes.

    Args:
        sampling_rate: of the samples, in Hz.

    Raises:
        AudioError: it is impossible.
    """

    def __init__(self, sampling_rate: float):
        rate = checked_rate(sampling_rate, "sampling_rate")
        self._resampler = None
        if rate != SAMPLING_RATE:
            import soxr

            options = {"dtype": "float32", "quality": "HQ"}
            self._resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, **options)
        self._peak, self._whole_numbers = 0.0, True

    def push(self, samples: np.ndarray | mx.array) -> np.ndarray:
        """The next samples, (n,), of the types that `load_audio` takes -> (m,).

        Raises:
            AudioError: they are of another shape or type, not finite, or integers passed as floats.
        """
        if not isinstance(samples, np.ndarray | mx.array) or samples.ndim != 1:
            shape = getattr(samples, "shape", None)
            given = f"of shape {tuple(shape)}" if shape is not None else type(samples).__name__
            raise AudioError(f"{_NAME} comes as arrays of shape (samples,), but one is {given}")
        samples = as_floats(samples)
        if samples.size:
            if not np.isfinite(samples).all():
                raise not_finite(_NAME)
            peak = max(self._peak, float(np.abs(samples).max()))
            whole_numbers = self._whole_numbers and bool((samples == np.rint(samples)).all())
            refuse_integers(peak, whole_numbers, _NAME)  # of what is refused nothing is kept
            self._peak, self._whole_numbers = peak, whole_numbers
        return samples if self._resampler is None else self._resampler.resample_chunk(samples)

    def finish(self) -> np.ndarray:
        """The audio ends here; returns what is still to come of it, (m,)."""
        none = np.zeros(0, np.float32)
        return none if self._resampler is None else self._resampler.resample_chunk(none, last=True)


class RecentSamples:
    """The latest samples of audio that is still coming in, at `SAMPLING_RATE`, read as those of a
    `Recording`.

    Attributes:
        size: how many there have been.
    """

    def __init__(self):
        self._samples = np.zeros(0, np.float32)
        self.size = 0

    @property
    def duration(self) -> float:
        """Seconds of all that has come."""
        return self.size / SAMPLING_RATE

    def append(self, samples: np.ndarray) -> None:
        """Add (n,) float32 samples."""
        self._samples = np.concatenate([self._samples, samples])
        self.size += len(samples)

    def read(self, start: int, end: int) -> mx.array:
        """Samples `[start:end]` of all that have come: (n,), float32.

        Raises:
            IndexError: some are forgotten.
        """
        oldest = self.size - len(self._samples)
        if start < oldest:
            raise IndexError(f"samples from {start} on are wanted, kept are those from {oldest} on")
        return mx.array(self._samples[start - oldest : max(start, end) - oldest])

    def forget(self, before: int) -> None:
        """Let go of the samples before one."""
        oldest = self.size - len(self._samples)
        self._samples = self._samples[max(0, before - oldest) :].copy()
