"""Masks of spectrograms, and recordings at other speeds."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import find_recording

from mlx_speech import load_audio
from mlx_speech.training.augmentation import SPEEDS, at_speed, samples_at_speed, spec_augment


def masks(frames: int, draws: int) -> list[np.ndarray]:
    """Which of (frames, 160) are masked, in several draws."""
    features = mx.random.normal((frames, 160), key=mx.random.key(0)) + 3
    mean = features.mean().item()
    found = []
    for seed in range(draws):
        masked = np.array(spec_augment(features, np.random.default_rng(seed)))
        changed = masked != np.array(features)
        np.testing.assert_allclose(masked[changed], mean, rtol=1e-6)
        found.append(changed)
    return found


def runs(line: np.ndarray) -> list[int]:
    """Lengths of what is true in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize(("frames", "longest"), [(400, 50), (100, 20), (4, 0)])
def test_masks(frames, longest):
    """Up to two bands of 27 filters each, the same in both spectra of a frame; up to two stretches
    of a second each, or a fifth of the recording."""
    found = masks(frames, 200)
    bands, stretches = [], []
    for changed in found:
        assert (changed[:, :80] == changed[:, 80:]).all()
        band, stretch = changed.all(0)[:80], changed.all(1)
        assert (changed[:, :80] == (band[None] | stretch[:, None])).all()
        bands.append(runs(band))
        stretches.append(runs(stretch))
        assert max(map(len, (bands[-1], stretches[-1]))) <= 2
    assert max(sum(lengths) for lengths in bands) <= 2 * 27
    assert max(sum(lengths) for lengths in stretches) <= 2 * longest
    singles = [lengths[0] for lengths in bands if len(lengths) == 2]
    assert 24 <= max(singles) <= 27
    if longest:
        singles = [lengths[0] for lengths in stretches if len(lengths) == 2]
        assert 0.8 * longest <= max(singles) <= longest
    # everywhere, and not always
    assert 0.1 < np.mean(found, axis=0)[:, :80].mean() < 0.5
    assert np.mean(found, axis=0)[0].min() > 0


def test_a_seed_says_which():
    features = mx.random.normal((200, 160), key=mx.random.key(1))
    one, two, other = (spec_augment(features, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert mx.array_equal(one, two)
    assert not mx.array_equal(one, other)
    assert one.dtype == mx.float32


def test_speeds():
    """Length and pitch change together, as with sox's effect of that name."""
    rate, seconds = 16000, 2
    tone = mx.sin(2 * np.pi * 440 * mx.arange(rate * seconds) / rate) * 0.5
    for speed in SPEEDS:
        found = np.array(at_speed(tone, speed, rate))
        assert len(found) == round(rate * seconds / speed)
        inner = found[2000:-2000]
        expected = 0.5 * np.sin(2 * np.pi * 440 * speed * np.arange(len(found)) / rate)[2000:-2000]
        np.testing.assert_allclose(inner, expected, atol=2e-3)
    assert at_speed(tone, 1.0, rate) is tone


@pytest.mark.parametrize("speed", SPEEDS)
def test_lengths_at_speeds(speed):
    samples = load_audio(find_recording("synthetic/flite_08.flac"))
    for count in [257, 300, 16001, *range(20000, 20100, 9)]:
        assert at_speed(samples[:count], speed, 16000).size == samples_at_speed(count, speed)
