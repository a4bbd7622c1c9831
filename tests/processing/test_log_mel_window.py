"""Features of audio that is still coming in."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech import GraniteSpeech5FeatureExtractor, GraniteSpeechFeatureExtractor
from mlx_speech.audio.live import RecentSamples

RATE = 16000


@pytest.fixture(
    params=[
        GraniteSpeechFeatureExtractor(),
        GraniteSpeechFeatureExtractor(n_fft=400, win_length=400),
        GraniteSpeech5FeatureExtractor(),
        GraniteSpeech5FeatureExtractor(delta_win_length=9),
    ],
    ids=["granite", "other transform", "turboctc", "longer differences"],
)
def extractor(request):
    return request.param


@pytest.fixture
def samples() -> np.ndarray:
    """Noise that grows, so that the greatest value is at its end."""
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    return 0.1 * noise * np.linspace(1e-5, 1, RATE, dtype=np.float32) ** 3


def part(extractor, samples: np.ndarray, first: int, highest=-np.inf, ended=False):
    """Frames from one on of these, of which no sample is read that is not needed."""
    recent = RecentSamples()
    recent.append(samples)
    recent.forget(max(0, first * 320 - extractor.reach_samples))
    end = extractor.num_frames(recent.size, ended=ended)
    return extractor.window(recent.read, recent.size, first, end, mx.array(highest))


@pytest.mark.parametrize("first", [0, 1, 7])
@pytest.mark.parametrize("size", [5000, 5119, 5120, 5279])
def test_what_is_known_does_not_depend_on_what_comes(extractor, samples, first, size):
    """With the greatest value of all; the last sample that a frame needs is enough."""
    whole = extractor.log_mel(mx.array(samples))
    _, highest = part(extractor, samples, 0, ended=True)
    known, _ = part(extractor, samples[:size], first, highest)
    np.testing.assert_allclose(known, whole[first : first + len(known)], atol=1e-6)
    assert 0 <= size / 320 - (first + len(known)) < 3 + extractor.reach_samples / 320


def test_the_end(extractor, samples):
    for size in (5000, 5100, 5119):  # of no odd frame, which would count for the greatest value
        whole = extractor.log_mel(mx.array(samples[:size]))
        known, highest = part(extractor, samples[:size], 0, ended=True)
        np.testing.assert_allclose(known, whole, atol=1e-6)
        last, _ = part(extractor, samples[:size], 9, highest, ended=True)
        np.testing.assert_allclose(last, whole[9:], atol=1e-6)


def test_the_greatest_value_runs(extractor, samples):
    """It is that of all frames so far, and only what is far below it changes with it."""
    early, highest = part(extractor, samples[:8000], 0)
    assert part(extractor, samples[:8000], 5, highest)[1] == highest
    assert part(extractor, samples[:4000], 5, highest)[1] == highest
    later, raised = part(extractor, samples, 0)
    assert raised > highest
    static = later[: len(early), : extractor.n_mels]
    changed = np.array(static != early[:, : extractor.n_mels])
    assert 0 < changed.mean() < 1
    assert np.array(static)[changed].max() == pytest.approx(raised.item() / 4 - 1)


def test_nothing_is_known_at_first(extractor):
    assert extractor.num_frames(0, ended=False) == 0
    assert extractor.num_frames(100, ended=False) == 0
