"""Random state dicts that torch saves, read without torch, equal to the last bit."""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_speech.checkpoint.pytorch import read_pytorch_bin

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
#: types that torch saves in another way
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
WAYS_TO_SAVE = {
    "zip": {},
    "zip protocol 4": {"pickle_protocol": 4},
    "zip protocol 5": {"pickle_protocol": 5},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}
SEEDS = pytest.mark.parametrize("seed", range(12))
WAYS = pytest.mark.parametrize("how", WAYS_TO_SAVE)


def random_tensor(chance: random.Random) -> torch.Tensor:
    """Of any type and shape, scalar and empty ones too."""
    shape = [chance.choice((0, 1, 1, 2, 3, 5, 8)) for _ in range(chance.randrange(5))]
    dtype = chance.choice((*FLOATS, *INTEGERS, *UNSIGNED, torch.bool))
    if dtype in FLOATS:
        return (torch.randn(shape, dtype=torch.float64) * 100).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    limits = torch.iinfo(dtype)
    low, high = max(limits.min, -(2**63)), min(limits.max, 2**63 - 1)
    values = [chance.randint(low, high) for _ in range(int(np.prod(shape)))]
    return torch.tensor(values, dtype=torch.int64).reshape(shape).to(dtype)


def random_view(value: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """Another tensor in the same storage: turned, cut, widened, or taken at steps."""
    for _ in range(chance.randrange(4)):
        way = chance.choice(("permute", "slice", "select", "expand", "flat", "window"))
        if way == "flat" and value.is_contiguous():
            value = value.reshape(-1)
        if value.ndim == 0:
            continue
        axis = chance.randrange(value.ndim)
        size = value.shape[axis]
        if way == "permute":
            value = value.permute(chance.sample(range(value.ndim), value.ndim))
        elif way == "slice":
            start = chance.randint(0, size)
            picked = slice(start, chance.randint(start, size), chance.randint(1, 3))
            value = value[(slice(None),) * axis + (picked,)]
        elif way == "select" and size:
            value = value.select(axis, chance.randrange(size))
        elif way == "expand":
            value = value.unsqueeze(axis).expand(*value.shape[:axis], 3, *value.shape[axis:])
        elif way == "window" and size > 1:
            value = value.unfold(axis, 2, 1)
    return value


def random_state_dict(seed: int) -> dict[str, torch.Tensor]:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    tensors = {}
    for n in range(40):
        value = random_tensor(chance)
        if value.dtype in UNSIGNED:
            tensors[f"unsigned.{n}"] = value
            continue
        for m in range(chance.choice((1, 1, 2, 4))):
            tensors[f"層.{n}.{m}"] = random_view(value, chance)
    return tensors


def assert_same(found: dict[str, mx.array], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        value = value.detach()
        if value.dtype == torch.float64:
            value = value.float()
        assert found[name].dtype == getattr(mx, str(value.dtype)[6:].replace("bool", "bool_"))
        assert found[name].shape == tuple(value.shape)
        if value.dtype == torch.bfloat16:
            assert np.array_equal(
                np.array(found[name].astype(mx.float32)), value.float().numpy()
            ), name
        else:
            assert np.array_equal(np.array(found[name]), value.numpy()), name


@WAYS
@SEEDS
def test_random_state_dicts(tmp_path, seed, how):
    tensors = random_state_dict(seed)
    torch.save(tensors, tmp_path / "a.bin", **WAYS_TO_SAVE[how])
    assert_same(read_pytorch_bin(tmp_path / "a.bin"), tensors)


@WAYS
def test_a_models_state(tmp_path, how):
    model = torch.nn.Sequential(
        torch.nn.Conv1d(3, 4, 5),
        torch.nn.BatchNorm1d(4),
        torch.nn.LSTM(4, 4, bidirectional=True),
        torch.nn.Linear(4, 7, dtype=torch.bfloat16),
    )
    state = model.state_dict()
    state["tied.weight"] = state["0.weight"]
    torch.save(state, tmp_path / "a.bin", **WAYS_TO_SAVE[how])
    assert_same(read_pytorch_bin(tmp_path / "a.bin"), state)
    parameters = dict(model.named_parameters())
    torch.save(parameters, tmp_path / "a.bin", **WAYS_TO_SAVE[how])
    assert_same(read_pytorch_bin(tmp_path / "a.bin"), parameters)


@WAYS
def test_special_values(tmp_path, how):
    values = [float("inf"), float("-inf"), float("nan"), -0.0, 1e-45, 1e300, 65504.0]
    tensors = {str(dtype): torch.tensor(values, dtype=dtype) for dtype in FLOATS}
    torch.save(tensors, tmp_path / "a.bin", **WAYS_TO_SAVE[how])
    found = read_pytorch_bin(tmp_path / "a.bin")
    for name, value in tensors.items():
        ours = np.array(found[name].astype(mx.float32))
        assert np.array_equal(ours, value.float().numpy(), equal_nan=True)
        assert np.array_equal(np.signbit(ours), torch.signbit(value).numpy())
