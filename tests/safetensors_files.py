"""Safetensors files written by hand: types that MLX does not write, and headers that lie."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_speech.checkpoint.elements import type_name


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(path: Path, header: dict | bytes, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def store_as(path: Path, weights: dict[str, mx.array], types: dict[str, str]) -> None:
    """Save tensors, some of which as what `types` says: F64, or the type of bytes that they are."""
    header, data = {}, b""
    for name, value in weights.items():
        dtype = types.get(name) or type_name(value.dtype)
        if dtype == "F64":
            stored = np.array(value.astype(mx.float32)).astype("<f8").tobytes()
        else:
            stored = bytes(memoryview(mx.contiguous(value).reshape(-1).view(mx.uint8)))
        header[name] = entry(dtype, list(value.shape), len(data), len(data) + len(stored))
        data += stored
    write(path, header, data)
