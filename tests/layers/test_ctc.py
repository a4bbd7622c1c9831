"""What a CTC head says greedily."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_speech.layers.ctc import best_labels_in_parts, collapsed


@pytest.mark.parametrize(
    ("labels", "blank", "expected", "places"),
    [
        ([], 0, [], []),
        ([0, 0], 0, [], []),
        ([5, 5, 0, 5, 7, 7, 5], 0, [5, 5, 7, 5], [1, 3, 4, 6]),
        ([0, 3, 0], 0, [3], [1]),
        ([0, 3, 3, 0], 3, [0, 0], [0, 3]),
    ],
)
def test_collapsed(labels, blank, expected, places):
    """A label is as likely as in the best of its frames."""
    logprobs = [-0.5, -0.1, -0.3, -0.7, -0.2, -0.4, -0.6][: len(labels)]
    assert collapsed(labels, logprobs, blank) == (expected, [logprobs[place] for place in places])


@pytest.mark.parametrize("at_once", [1, 3, 4, 7, 100])
def test_labels_of_frames_in_parts(at_once):
    logits = mx.random.normal((7, 5), key=mx.random.key(0))
    sizes = []

    def part(frames: slice) -> mx.array:
        sizes.append(len(logits[frames]))
        return logits[frames]

    labels, logprobs = best_labels_in_parts(part, 7, at_once)
    assert labels == mx.argmax(logits, axis=-1).tolist()
    expected = (logits - mx.logsumexp(logits, axis=-1, keepdims=True)).max(axis=-1)
    assert logprobs == pytest.approx(expected.tolist(), abs=1e-6)
    assert max(sizes) <= at_once
    assert sum(sizes) == 7


def test_of_no_frames():
    assert best_labels_in_parts(lambda part: mx.zeros((0, 3)), 0, 4) == ([], [])
