"""Recordings that differ a little each time they are trained on."""

import mlx.core as mx
import numpy as np

from ..audio import load_audio

#: Ko and others, "Audio augmentation for speech recognition", 2015
SPEEDS = (0.9, 1.0, 1.1)
#: of masks of frequencies: how many, and how wide one may be, as a share of the filters
_FREQUENCY_MASKS, _FREQUENCY_SHARE = 2, 27 / 80
#: of masks of times: how many, and how long one may be, in frames of 20 ms and as a share of all
_TIME_MASKS, _TIME_FRAMES, _TIME_SHARE = 2, 50, 0.2


def samples_at_speed(samples: int, speed: float) -> int:
    """How many samples so many become at another speed."""
    return samples if speed == 1 else round(samples / speed)


def at_speed(samples: mx.array, speed: float, sampling_rate: int) -> mx.array:
    """(n,) samples, played so much faster, the pitch with them: (n / speed,)."""
    if speed == 1:
        return samples
    return load_audio(samples, round(sampling_rate * speed), sampling_rate)


def spec_augment(features: mx.array, random: np.random.Generator) -> mx.array:
    """Features with bands of frequencies and stretches of time masked (Park and others,
    https://arxiv.org/abs/1904.08779): the policy "LibriSpeech double" without its time warping,
    which gains little there, and with the bound on the length of masks, a fifth of the recording,
    that it has for Switchboard: in recordings of seconds, longer ones would hide whole words.

    What is masked has the mean of all. That is 0 in the paper, whose spectrograms are normalized;
    these here are not.

    Args:
        features: (frames, 2 * filters), two spectra side by side; a band is masked in both.
    """
    frames, width = features.shape
    filters = width // 2
    masked = np.zeros((frames, filters), bool)
    for _ in range(_FREQUENCY_MASKS):
        start, end = _span(filters, _FREQUENCY_SHARE * filters, random)
        masked[:, start:end] = True
    for _ in range(_TIME_MASKS):
        start, end = _span(frames, min(_TIME_FRAMES, _TIME_SHARE * frames), random)
        masked[start:end] = True
    return mx.where(mx.array(np.tile(masked, 2)), features.mean(), features)


def _span(size: int, longest: float, random: np.random.Generator) -> tuple[int, int]:
    """Somewhere within `size`, up to `longest` of it, as the paper draws it."""
    length = int(random.integers(0, int(longest) + 1))
    start = int(random.integers(0, size - length + 1))
    return start, start + length
