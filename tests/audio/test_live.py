"""Samples that are still coming in."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_speech import AudioError, load_audio
from mlx_speech.audio.live import RecentSamples, SampleStream


def sound(rate: int) -> np.ndarray:
    t = np.arange(2 * rate) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * t**1.5)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100])
@pytest.mark.parametrize("size", [1, 160, 44100])
def test_resampled_as_a_recording(rate, size):
    samples, stream = sound(rate)[: 300 * size], SampleStream(rate)
    parts = [stream.push(samples[i : i + size]) for i in range(0, len(samples), size)]
    resampled = np.concatenate([*parts, stream.finish()])
    np.testing.assert_array_equal(resampled, load_audio(samples, rate))


def test_it_comes_soon():
    stream = SampleStream(48000)
    given = sum(len(stream.push(part)) for part in np.split(sound(48000), 100))
    assert 32000 - given < 0.05 * 16000


def test_integers_among_floats():
    stream = SampleStream(16000)
    stream.push(np.array([0.0, 1.0, -1.0]))  # may be silence and clicks
    with pytest.raises(AudioError, match="these look like integers"):
        stream.push(np.array([5.0]))
    with pytest.raises(AudioError, match="these look like integers"):
        stream.push(np.array([3000.0, 0.5]))
    assert stream.push(np.array([0.5])).tolist() == [0.5]  # the next may be right
    stream = SampleStream(16000)
    stream.push(np.array([0.0, 0.1, 1.5]))
    stream.push(np.array([2.0]))


def test_recent_samples():
    samples = RecentSamples()
    for start in range(0, 1000, 100):
        samples.append(np.arange(start, start + 100, dtype=np.float32))
        samples.forget(start - 200)
    assert (samples.size, samples.duration) == (1000, 1000 / 16000)
    np.testing.assert_array_equal(samples.read(700, 705), np.arange(700, 705))
    np.testing.assert_array_equal(samples.read(995, 2000), np.arange(995, 1000))
    assert samples.read(900, 900).size == 0
    with pytest.raises(IndexError, match="kept are those from 700 on"):
        samples.read(699, 705)
    samples.forget(5000)
    assert samples.read(1000, 1001).size == 0
