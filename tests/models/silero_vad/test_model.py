"""Silero VAD in MLX beside its package's own, and in parts."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA

from mlx_speech import load_audio
from mlx_speech.models.silero_vad import WINDOW_SAMPLES, SileroVAD

REFERENCE = json.loads((DATA / "reference" / "silero_vad.json").read_text())


@pytest.fixture(scope="module")
def silero() -> SileroVAD:
    return SileroVAD.bundled()


@pytest.mark.parametrize("name", REFERENCE)
def test_reference(silero, name):
    """To recordings whose last window is not whole, and to silence."""
    probabilities, _ = silero(load_audio(DATA / "audio" / name))
    np.testing.assert_allclose(probabilities, REFERENCE[name], atol=3e-5)
    assert probabilities.dtype == mx.float32


def test_parts_are_as_the_whole(silero):
    samples = load_audio(DATA / "audio" / "espeak_06.flac")
    step, state, parts = 7 * WINDOW_SAMPLES, None, []
    for start in range(0, samples.size, step):
        probabilities, state = silero(samples[start : start + step], state)
        parts += probabilities.tolist()
    np.testing.assert_allclose(parts, silero(samples)[0], atol=3e-5)


@pytest.mark.parametrize("size", [1, 511, 512, 513])
def test_windows(silero, size):
    assert silero(mx.zeros(size))[0].shape == (-(-size // 512),)
