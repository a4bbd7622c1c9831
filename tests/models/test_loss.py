"""Cross-entropy: the mean over what counts, and labels that are none."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech.errors import InputError
from mlx_speech.models.loss import causal_lm_loss, cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
LABELS = np.array([[0, 4, -100, 2], [1, -100, -100, 3]])


def expected(pairs) -> float:
    """Mean of minus the logarithm of the probability of each label."""
    losses = [np.log(np.exp(LOGITS[r, t]).sum()) - LOGITS[r, t, label] for r, t, label in pairs]
    return float(np.mean(losses))


def test_mean_over_the_labels_that_count():
    pairs = [(r, t, LABELS[r, t]) for r in range(2) for t in range(4) if LABELS[r, t] != -100]
    found = cross_entropy(mx.array(LOGITS), mx.array(LABELS))
    assert found.item() == pytest.approx(expected(pairs), rel=1e-5)
    half = cross_entropy(mx.array(LOGITS).astype(mx.bfloat16), mx.array(LABELS))
    assert half.dtype == mx.float32


def test_a_causal_model_is_asked_for_the_next_label():
    pairs = [(0, 0, 4), (0, 2, 2), (1, 2, 3)]
    found = causal_lm_loss(mx.array(LOGITS), mx.array(LABELS))
    assert found.item() == pytest.approx(expected(pairs), rel=1e-5)
    mask = mx.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    found = causal_lm_loss(mx.array(LOGITS), mx.array(LABELS), mask)
    assert found.item() == pytest.approx(expected([(0, 0, 4), (1, 2, 3)]), rel=1e-5)


@pytest.mark.parametrize("wrong", [5, -1, 1000, -101])
def test_labels_out_of_range(wrong):
    labels = mx.array([[0, 1, 2, wrong], [0, 0, 0, 0]])
    for loss in (cross_entropy, causal_lm_loss):
        with pytest.raises(InputError, match=f"labels hold {wrong}, but must be within 0 and 4"):
            loss(mx.array(LOGITS), labels)
