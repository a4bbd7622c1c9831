"""Cutting long recordings where they are quiet."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech.segmentation import cut_at_quiet

RATE = 16000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def check(spans, size: int, max_seconds: float) -> None:
    """One after the other, all of it, none too long, none tiny."""
    assert spans[0][0] == 0
    assert spans[-1][1] == size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert max(end - start for start, end in spans) <= max_seconds * RATE
    if len(spans) > 1:
        assert min(end - start for start, end in spans) >= max_seconds * RATE // 4


def test_cuts_within_the_pauses():
    """Pauses of 0.4 s at every 7 s: each cut is in one, though louder noise surrounds it."""
    audio = noise(60)
    pauses = [(int(at * RATE), int((at + 0.4) * RATE)) for at in range(7, 60, 7)]
    for start, end in pauses:
        audio[start:end] *= 0.01
    spans = cut_at_quiet(mx.array(audio), RATE, 20)
    check(spans, audio.size, 20)
    assert len(spans) == 4
    for _, end in spans[:-1]:
        assert any(start + 0.1 * RATE < end < stop - 0.1 * RATE for start, stop in pauses)


@pytest.mark.parametrize("extra", [-1, 0, 1, 399, RATE, 9 * RATE])
@pytest.mark.parametrize("whole", [1, 2, 5])
def test_edges(whole, extra):
    """Lengths around a multiple of the limit, also in complete silence."""
    size = whole * 10 * RATE + extra
    for audio in (noise(size / RATE)[:size], np.zeros(size, np.float32)):
        spans = cut_at_quiet(mx.array(audio), RATE, 10)
        check(spans, audio.size, 10)
        assert (len(spans) == 1) == (audio.size <= 10 * RATE)


def test_very_short_limit():
    spans = cut_at_quiet(mx.array(noise(3)), RATE, 0.2)
    check(spans, 3 * RATE, 0.2)
