"""Cross-entropy: the mean over what counts, and labels that are none."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech.errors import InputError
from mlx_speech.models.loss import (
    causal_lm_loss,
    cross_entropy,
    sequence_classification_loss,
)

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


def test_unsigned_labels():
    """Of a type that could not hold -100: 156 is a label like others."""
    logits = mx.zeros((1, 2, 200))
    found = cross_entropy(logits, mx.array([[156, 0]], mx.uint8))
    assert found.item() == pytest.approx(np.log(200), rel=1e-5)
    assert cross_entropy(logits, mx.array([[156, 0]], mx.uint8), 1).item() > 10


def test_one_position_has_no_loss():
    assert np.isnan(causal_lm_loss(mx.zeros((1, 1, 5)), mx.array([[3]])).item())


def test_a_part_of_a_batch():
    """The sum, divided by what is said; another label that does not count."""
    pairs = [(0, 0, 4), (0, 2, 2), (1, 2, 3)]
    found = causal_lm_loss(mx.array(LOGITS), mx.array(LABELS), num_items_in_batch=12)
    assert found.item() == pytest.approx(expected(pairs) * 3 / 12, rel=1e-5)
    labels = mx.where(mx.array(LABELS) == -100, 1, mx.array(LABELS))
    found = causal_lm_loss(mx.array(LOGITS), labels, ignore_index=1)
    assert found.item() == pytest.approx(expected(pairs), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1]], "labels are list"),
        (np.zeros((2, 3), int), r"\(2, 3\), but must be an array \(2, 4\), one for each"),
        (np.zeros((2, 4)), "float"),
    ],
)
def test_labels_that_are_none(labels, message):
    with pytest.raises(InputError, match=message):
        causal_lm_loss(mx.array(LOGITS), labels)


ROWS = LOGITS[0, :3]  # of three texts and five classes


def test_classes_that_do_not_count():
    """-100 is no class, and is not read from memory beside the logits."""
    found = sequence_classification_loss(mx.array(ROWS), mx.array([0, -100, 2]))
    assert found.item() == pytest.approx(expected([(0, 0, 0), (0, 2, 2)]), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (np.array([0, 5, 2]), None, "labels hold 5, but must be within 0 and 4, or -100"),
        (np.array([0, -1, 2]), None, "labels hold -1"),
        (np.array([0, 1]), None, r"labels are \(2\,\), but must be an array \(3\) or \(3, 1\)"),
        (np.zeros(3), None, r"must be an array \(3, 5\)"),
        (np.zeros(3), "single_label_classification", "float.*but must be integers"),
        (np.zeros((3, 4)), "regression", r"must be an array \(3, 5\)"),
        ([0, 1, 2], None, "labels are list"),
    ],
)
def test_labels_of_no_class(labels, problem_type, message):
    with pytest.raises(InputError, match=message):
        sequence_classification_loss(mx.array(ROWS), labels, problem_type)
