"""Activations against their definitions, in each type and on each device."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_speech.layers.activations import ACTIVATIONS, glu, silu


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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("silu swish", [-0.2689414, 0.7310586]),
        ("gelu gelu_python", [-0.1586553, 0.8413447]),
        ("gelu_pytorch_tanh gelu_new gelu_fast", [-0.1588080, 0.8411920]),
        ("quick_gelu", [-0.1542045, 0.8457955]),
        ("leaky_relu", [-0.01, 1.0]),
        ("mish", [-0.3034015, 0.8650984]),
        ("sigmoid", [0.2689414, 0.7310586]),
        ("tanh", [-0.7615942, 0.7615942]),
    ],
)
def test_names(names, expected):
    for name in names.split():
        assert ACTIVATIONS[name](mx.array([-1.0, 1.0])).tolist() == pytest.approx(
            expected, abs=1e-6
        )
