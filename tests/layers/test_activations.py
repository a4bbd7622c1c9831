"""Activations against their definitions, in each type and on each device."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_speech.layers.activations import glu, silu


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_activations_are_the_same_on_every_device(dtype):
    """The rational sigmoid that a CPU takes against MLX's own, in units of the last place."""
    x = mx.concatenate([mx.linspace(-30, 30, 60001), mx.array([-1e4, 1e4, 0.0])]).astype(dtype)
    tolerance = 3e-7 if dtype == mx.float32 else 8e-3
    scale = mx.maximum(1, mx.abs(x.astype(mx.float32)))
    gates = mx.stack([mx.ones_like(x), x], axis=-1)
    for found, expected in ((silu(x), nn.silu(x)), (glu(gates)[:, 0], mx.sigmoid(x))):
        assert found.dtype == dtype
        error = mx.abs(found.astype(mx.float32) - expected.astype(mx.float32)) / scale
        assert error.max().item() < tolerance


def test_squared_relu_in_float32():
    """In float16 300 squared is too large, and 1e-4 squared too small, unless it is scaled."""
    from mlx_speech.layers.activations import relu2

    x = mx.array([-3.0, 0.0, 200.0], mx.float16)
    assert relu2(x).tolist() == [0.0, 0.0, 40000.0]
    # the square of a bfloat16 number, rounded once
    x = mx.array([1.0078125], mx.bfloat16)
    assert relu2(x).item() == mx.array(1.0078125**2).astype(mx.bfloat16).item()
