"""Tensors and the model that they are put into: all of them, in one type, or an error."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_speech.checkpoint.weights import assign_weights, cast, checkpoint_dtype, read_safetensors
from mlx_speech.errors import CheckpointError


def tensors(**changes) -> dict[str, mx.array]:
    """Of a linear layer from 3 to 2; None leaves one out."""
    whole = {"weight": mx.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "bias": mx.array([7.0, 8.0])}
    return {name: value for name, value in (whole | changes).items() if value is not None}


def test_assigned_to_the_model_of_their_names(tmp_path):
    layer = nn.Linear(3, 2)
    assign_weights(layer, tensors(), tmp_path)
    np.testing.assert_array_equal(layer(mx.array([1.0, 0.0, -1.0])), [1 - 3 + 7, 4 - 6 + 8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": None}, "1 tensors missing: bias$"),
        ({"scale": mx.ones(2)}, "1 tensors not part of this model: scale$"),
        (
            {"weight": mx.zeros((3, 2))},
            r"1 tensors of the wrong shape: weight \(3, 2\) instead of \(2, 3\)$",
        ),
        (
            {"bias": None, **{name: mx.ones(1) for name in "dacb"}},
            "1 tensors missing: bias; 4 tensors not part of this model: a, b, c, …$",
        ),
    ],
)
def test_what_does_not_fit(tmp_path, changes, message):
    layer = nn.Linear(3, 2)
    before = layer.weight
    with pytest.raises(CheckpointError, match=message):
        assign_weights(layer, tensors(**changes), tmp_path)
    assert layer.weight is before


def test_floats_alone_are_cast():
    layer = nn.Linear(64, 2).to_quantized(group_size=64, bits=4)
    packed = layer.weight
    cast(layer, mx.float16)
    assert layer.scales.dtype == layer.bias.dtype == mx.float16
    assert mx.array_equal(layer.weight, packed)
    assert layer.weight.dtype == mx.uint32


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float16", "torch_dtype": "float32"}, mx.float16),
        ({"torch_dtype": "bfloat16"}, mx.bfloat16),
        ({"text_config": {"dtype": "float16"}}, mx.bfloat16),
        ({"dtype": "int8"}, mx.bfloat16),
    ],
)
def test_type_of_a_checkpoint(config, expected):
    """Stated, or that of most numbers; integers do not count."""
    stored = {"a": mx.zeros(9, mx.bfloat16), "b": mx.zeros(4), "c": mx.zeros(4)}
    stored["d"] = mx.zeros(99, mx.uint32)
    assert checkpoint_dtype(config, stored) == expected
    assert checkpoint_dtype({}, {}) == mx.float32


def test_files_that_are_missing_or_damaged(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing; download it again"):
        read_safetensors(path)
    mx.save_safetensors(str(path), tensors())
    assert mx.array_equal(read_safetensors(path)["bias"], tensors()["bias"])
    whole = path.read_bytes()
    for cut in (0, 7, 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            read_safetensors(path)
