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
    """To recordings whose last window is not whole, and to silence, within 1e-5, but for a window
    where float32 takes the package itself farther from exact arithmetic (see the parity test)."""
    probabilities, _ = silero(load_audio(DATA / "audio" / name))
    errors = np.abs(np.array(probabilities) - REFERENCE[name])
    assert (errors > 1e-5).sum() <= 1
    assert errors.max() < 3e-5
    assert probabilities.dtype == mx.float32


@pytest.mark.parametrize("windows", [1, 7, 2000])
def test_parts_are_as_the_whole(silero, windows):
    samples = mx.tile(load_audio(DATA / "audio" / "espeak_06.flac"), 30)
    step, state, parts = windows * WINDOW_SAMPLES, None, []
    for start in range(0, samples.size, step):
        probabilities, state = silero(samples[start : start + step], state)
        parts += probabilities.tolist()
    np.testing.assert_allclose(parts, silero(samples)[0], atol=3e-5)


def test_batch_is_as_one_by_one(silero):
    """Of recordings of any length, and from the states that they left."""
    alone = [load_audio(DATA / "audio" / f"{name}.flac") for name in ("espeak_06", "flite_08")]
    longest = max(samples.size for samples in alone)
    batch = mx.stack([mx.pad(samples, (0, longest - samples.size)) for samples in alone])
    first, state = silero(batch[:, : 20 * WINDOW_SAMPLES])
    second, _ = silero(batch[:, 20 * WINDOW_SAMPLES :], state)
    together = np.concatenate([first, second], axis=1)
    for row, samples in zip(together, alone, strict=True):
        whole = samples.size // WINDOW_SAMPLES
        np.testing.assert_allclose(row[:whole], silero(samples)[0][:whole], atol=3e-5)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_windows(silero, size):
    assert silero(mx.zeros(size))[0].shape == (-(-size // 512),)
    assert silero(mx.zeros((2, size)))[0].shape == (2, -(-size // 512))


def test_memory_does_not_grow(silero):
    """With the samples of one push, beyond these themselves."""
    peaks = []
    for minutes in (1, 8):
        samples = mx.zeros(minutes * 60 * 16000)
        mx.eval(samples)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(silero(samples)[0])
        peaks.append(mx.get_peak_memory() - before - samples.nbytes)
    assert peaks[1] < 1.5 * peaks[0]
