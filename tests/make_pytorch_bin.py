"""Writes small files of torch.save, and what they hold, into data/pytorch_bin.

Needs what `make parity` installs: `.venv/bin/python tests/make_pytorch_bin.py`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data" / "pytorch_bin"
FLOATS = ("float64", "float32", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool", "uint16", "uint32", "uint64")


def state_dict() -> OrderedDict:
    """Every type that is read, and every way in which a tensor can lie in its storage."""
    tensors = OrderedDict()
    for name in FLOATS + INTEGERS:
        values = torch.arange(-3, 3) / 2 if name in FLOATS else torch.arange(6) % 3
        tensors[f"type.{name}"] = values.reshape(2, 3).to(getattr(torch, name))
    base = torch.arange(24).float()
    tensors["view.whole"] = base
    tensors["view.offset"] = base[5:9]
    tensors["view.transposed"] = base.reshape(4, 6).T
    tensors["view.steps"] = base.reshape(2, 3, 4)[:, 1:, ::2]
    tensors["view.one"] = base[7]
    tensors["view.again"] = base.reshape(24, 1)
    tensors["expanded"] = torch.tensor([[1.5], [2.5]]).expand(2, 4)
    tensors["overlapping"] = torch.arange(5).unfold(0, 3, 1)
    tensors["scalar"] = torch.tensor(3.25)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["parameter"] = torch.nn.Parameter(torch.tensor([0.1, -0.2]))
    tensors["größe"] = torch.tensor([float("inf"), float("-inf"), -0.0])
    # as Module.state_dict() leaves it
    tensors._metadata = OrderedDict({"": {"version": 1}})
    return tensors


def as_read(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def main() -> None:
    DATA.mkdir(exist_ok=True)
    tensors = state_dict()
    save_file(
        {name: as_read(value) for name, value in tensors.items()}, DATA / "expected.safetensors"
    )
    torch.save(tensors, DATA / "zip.bin")
    torch.save(tensors, DATA / "zip_protocol4.bin", pickle_protocol=4)
    torch.save(tensors, DATA / "legacy.bin", _use_new_zipfile_serialization=False)

    float8 = {
        "float8_e4m3fn": [-448, -(2**-9), 0, 1.125, 15],
        "float8_e5m2": [-57344, -(2**-16), 0, 1.25, 14],
        "float8_e8m0fnu": [2**-127, 0.5, 1, 2, 2**127],
    }
    tensors = {k: torch.tensor(v).to(getattr(torch, k)) for k, v in float8.items()}
    torch.save(tensors, DATA / "float8.bin")

    ones = torch.ones(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it will drop quantized tensors
        quantized = torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)
    for name, value in {
        "nested": {"model": {"weight": ones}, "step": 3},
        "list": [ones],
        "number_keys": {0: ones},
        "sparse": {"weight": ones.to_sparse()},
        "quantized": {"weight": quantized},
        "complex": {"weight": ones.to(torch.complex64)},
        "module": torch.nn.Identity(),
    }.items():
        torch.save(value, DATA / f"refused_{name}.bin")


if __name__ == "__main__":
    main()
