"""The windowed Q-Former against the same written in NumPy."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from mlx_speech.models.granite_speech.projector import Blip2QFormerConfig, WindowedProjector

WINDOW, RATE, HEADS, EPSILON = 15, 5, 4, 1e-12
erf = np.vectorize(math.erf)


def norm(w, name, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def attend(w, name, x, source):
    """Attention, projection, residual and norm over one window."""
    q, k, v = (
        linear(w, f"{name}.attention.{part}", states).reshape(len(states), HEADS, -1)
        for part, states in (("query", x), ("key", source), ("value", source))
    )
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
    return norm(w, f"{name}.output.LayerNorm", linear(w, f"{name}.output.dense", mixed) + x)


def reference(w, frames):
    """(frames, size) -> (tokens, output size), window by window."""
    found = []
    for start in range(0, len(frames), WINDOW):
        window = np.zeros((WINDOW, frames.shape[1]))
        part = frames[start : start + WINDOW]
        window[: len(part)] = part
        x = norm(w, "qformer.layernorm", w["query"][0])
        for layer in ("qformer.encoder.layer.0", "qformer.encoder.layer.1"):
            x = attend(w, f"{layer}.attention", x, x)
            if f"{layer}.crossattention.attention.query.weight" in w:
                x = attend(w, f"{layer}.crossattention", x, window)
            inner = linear(w, f"{layer}.intermediate_query.dense", x)
            inner = 0.5 * inner * (1 + erf(inner / math.sqrt(2)))
            outer = linear(w, f"{layer}.output_query.dense", inner)
            x = norm(w, f"{layer}.output_query.LayerNorm", outer + x)
        found.append(linear(w, "linear", x))
    return np.concatenate(found)


def projector(frequency: int, **options) -> WindowedProjector:
    config = Blip2QFormerConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=24,
        encoder_hidden_size=10,
        cross_attention_frequency=frequency,
        **options,
    )
    made = WindowedProjector(config, window_size=WINDOW, downsample_rate=RATE, output_size=12)
    made.eval()
    keys = iter(mx.random.split(mx.random.key(7), 200))
    made.update(
        tree_map(lambda p: 0.5 * mx.random.normal(p.shape, key=next(keys)), made.parameters())
    )
    return made


@pytest.mark.parametrize("frequency", [1, 2])
@pytest.mark.parametrize("length", [1, 14, 15, 16, 44])
def test_equal_to_numpy(frequency, length):
    made = projector(frequency)
    weights = {name: np.array(w, np.float64) for name, w in tree_flatten(made.parameters())}
    second = "qformer.encoder.layer.1.crossattention.attention.query.weight"
    assert (second in weights) == (frequency == 1)
    frames = np.random.default_rng(length).normal(size=(2, length, 10))
    found = made(mx.array(frames.astype(np.float32)))
    assert found.shape == (2, -(-length // WINDOW) * (WINDOW // RATE), 12)
    for row, own in zip(np.array(found), frames, strict=True):
        np.testing.assert_allclose(row, reference(weights, own), atol=2e-4)


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training(rate, monkeypatch):
    """Each rate alone, and only then; of hidden states after the first norm and each sublayer."""
    called, original = [], nn.Dropout.__call__
    monkeypatch.setattr(nn.Dropout, "__call__", lambda *a: called.append(1) or original(*a))
    made, frames = projector(1), mx.random.normal((1, 15, 10), key=mx.random.key(1))
    expected = made(frames)
    assert len(called) == 1 + 3 * 2
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for rates, same in ((none, True), (none | {rate: 0.5}, False)):
        trained = projector(1, **rates).train()
        assert mx.array_equal(trained(frames), expected).item() == same
        assert mx.array_equal(trained.eval()(frames), expected).item()
