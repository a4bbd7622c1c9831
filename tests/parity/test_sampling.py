"""Shaping of the distribution against transformers' logits processors."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mlx_speech.generation import GenerationConfig
from mlx_speech.generation.processors import repetition_penalty
from mlx_speech.generation.sampling import Sampler, truncate

OPTIONS = [
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 500},
    {"top_p": 0.05},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 1.0},
    {"min_p": 0.02},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.5, "top_p": 0.8},
    {"top_k": 10, "top_p": 0.7},
    {"top_k": 30, "min_p": 0.1},
    {"top_p": 0.9, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 25, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 2.0, "top_k": 50, "top_p": 0.6, "min_p": 0.01},
]


def random_logits(seed: int, rows: int = 5, vocab: int = 97) -> np.ndarray:
    scale = np.array([[0.1], [1.0], [3.0], [8.0], [2.0]])[:rows]
    return (np.random.default_rng(seed).normal(0, 1, (rows, vocab)) * scale).astype(np.float32)


def warp(logits: np.ndarray, options: dict) -> np.ndarray:
    warpers = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    chain = LogitsProcessorList([warpers[n](options[n]) for n in warpers if n in options])
    return chain(None, torch.from_numpy(logits)).numpy()


def probabilities(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items())
)
def test_truncate(options, seed):
    """The same tokens kept, probabilities within 1e-6."""
    logits = random_logits(seed)
    config = GenerationConfig(do_sample=True, **options)
    ours, expected = np.array(truncate(mx.array(logits), config)), warp(logits, options)
    assert (np.isfinite(ours) == np.isfinite(expected)).all()
    assert np.abs(probabilities(ours) - probabilities(expected)).max() < 1e-6


def test_options_truncate():
    """That most of the options above drop something and none drops all."""
    kept = [np.isfinite(warp(random_logits(0), options)).sum(axis=-1) for options in OPTIONS]
    assert sum((k < 97).any() for k in kept) > 12
    assert all((k > 0).all() for k in kept)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"min_p": 0.5}], ids=str)
def test_truncate_ties(options):
    """Equal logits at the edge are kept together; the same in both."""
    logits = np.array([[3.0, 2.0, 2.0, 2.0, 1.0, -1.0]], np.float32)
    config = GenerationConfig(do_sample=True, **options)
    ours, expected = np.array(truncate(mx.array(logits), config)), warp(logits, options)
    assert np.abs(probabilities(ours) - probabilities(expected)).max() < 1e-6


@pytest.mark.parametrize("penalty", [0.5, 1.2, 5.0])
def test_repetition_penalty(penalty):
    """Scores within 1e-6 relative; tokens that occurred several times are penalised once."""
    scores = random_logits(4)
    seen = np.random.default_rng(1).integers(0, 97, (5, 30))
    seen[:, 5] = seen[:, 6]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.from_numpy(seen), torch.from_numpy(scores.copy())
    )
    ours = repetition_penalty(penalty)(mx.array(seen), mx.array(scores))
    np.testing.assert_allclose(np.array(ours), expected.numpy(), rtol=1e-6)


def test_drawn_frequencies():
    """20000 draws: frequencies within 0.015 of transformers' probabilities (4 standard errors)."""
    options = {"temperature": 0.9, "top_k": 8, "top_p": 0.9}
    logits = random_logits(6, rows=2)[1:]
    draw = Sampler(GenerationConfig(do_sample=True, seed=11, **options))
    rows = mx.broadcast_to(mx.array(logits), (20000, 97))
    drawn = np.array(draw(rows, mx.zeros((20000, 0), mx.int32))[0][:, 0])
    frequencies = np.bincount(drawn, minlength=97) / 20000
    expected = probabilities(warp(logits, options))[0]
    assert np.abs(frequencies - expected).max() < 0.015
    assert (frequencies[expected == 0] == 0).all()
