"""Weights of eight bits and their scales, in the ways in which checkpoints have them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech.checkpoint.float8 import apply_scales
from mlx_speech.errors import CheckpointError

VALUES = np.arange(-9, 9, dtype=np.float32).reshape(3, 6)
ROWS = np.array([[0.5], [2], [4]], np.float32)


def scaled(scale: np.ndarray, name: str = "a.weight_scale", blocks=None, **others) -> dict:
    weights = {"a.weight": mx.array(VALUES).astype(mx.bfloat16), name: mx.array(scale)}
    config = {} if blocks is None else {"quantization_config": {"weight_block_size": blocks}}
    return apply_scales(weights | others, config)


@pytest.mark.parametrize("name", ["a.weight_scale", "a.weight_scale_inv"])
@pytest.mark.parametrize(
    ("scale", "blocks", "factors"),
    [
        (np.float32(0.25), None, 0.25),  # for a tensor
        (np.array([0.25], np.float32), None, 0.25),
        (ROWS, None, ROWS),  # for each row
        (ROWS[:, 0], None, ROWS),
        (np.array([[2, 4]], np.float32), None, np.repeat([[2, 4]], [3, 3], axis=1)),  # for blocks
        (np.array([[2, 4]], np.float32), [4, 4], np.repeat([[2, 4]], [4, 2], axis=1)),
        (
            np.array([[1, 2], [3, 4]], np.float32),
            [2, 4],
            [[1] * 4 + [2] * 2] * 2 + [[3] * 4 + [4] * 2],
        ),
    ],
)
def test_products(name, scale, blocks, factors):
    found = scaled(scale, name, blocks)
    assert found.keys() == {"a.weight"}
    assert found["a.weight"].dtype == mx.float32
    np.testing.assert_array_equal(found["a.weight"], VALUES * np.array(factors, np.float32))


def test_the_rest_stays_but_for_scales_of_activations():
    others = {"a.bias": mx.ones(3), "a.input_scale": mx.ones(()), "b.weight_scale": mx.ones(1)}
    found = scaled(ROWS, **others)
    assert found.keys() == {"a.weight", "a.bias", "b.weight_scale"}


@pytest.mark.parametrize("shape", [(2, 1), (4,), (1, 4), (3, 7), (1, 1, 6), (3, 0), (0,)])
@pytest.mark.parametrize("blocks", [None, [128, 128], "128", [0, -1]])
def test_scales_of_no_blocks(shape, blocks):
    with pytest.raises(CheckpointError, match=r"tensor a.weight_scale has .* of no blocks of the"):
        scaled(np.ones(shape, np.float32), blocks=blocks)
