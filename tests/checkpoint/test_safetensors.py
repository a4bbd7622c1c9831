"""Safetensors files: what is read of them, and that what breaks the format is refused."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from safetensors_files import entry, write

from mlx_speech.checkpoint.safetensors import read_safetensors
from mlx_speech.errors import CheckpointError


@pytest.mark.parametrize(
    ("dtype", "data", "values", "found"),
    [
        ("F32", np.array([1.5, -2], "<f4"), [1.5, -2], mx.float32),
        ("F64", np.array([1.5, -1e-300], "<f8"), [1.5, 0], mx.float32),
        ("BF16", np.array([0x3F80, 0xC000], "<u2"), [1, -2], mx.bfloat16),
        ("F8_E4M3", np.array([0x7E, 0x81], "u1"), [448, -(2**-9)], mx.bfloat16),
        ("F8_E5M2", np.array([0x7B, 0x81], "u1"), [57344, -(2**-16)], mx.float16),
        ("F8_E8M0", np.array([126, 130], "u1"), [0.5, 8], mx.float32),
        ("I8", np.array([-3, 3], "i1"), [-3, 3], mx.int8),
        ("BOOL", np.array([0, 1], "u1"), [False, True], mx.bool_),
    ],
)
@pytest.mark.parametrize("beside", ["F32", "F64"])  # one that MLX reads, one that it does not
def test_types(tmp_path, dtype, data, values, found, beside):
    size = data.nbytes
    other = np.array([7, 8], {"F32": "<f4", "F64": "<f8"}[beside])
    header = {
        "__metadata__": {"format": "pt"},
        "other": entry(beside, [2], 0, other.nbytes),
        "a": entry(dtype, [2, 1], other.nbytes, other.nbytes + size),
        "none": entry(dtype, [0, 4], other.nbytes + size, other.nbytes + size),
    }
    arrays = read_safetensors(write(tmp_path / "a", header, other.tobytes() + data.tobytes()))
    assert arrays["a"].dtype == arrays["none"].dtype == found
    assert arrays["a"].shape == (2, 1)
    assert arrays["none"].shape == (0, 4)
    assert arrays["a"].flatten().tolist() == values
    assert arrays["other"].tolist() == [7, 8]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry("F32", [4], 0, 16), "b": entry("F32", [2], 0, 8)}, "invalid offset"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [2], 8, 16)}, "invalid offset"),
        ({"a": entry("F32", [2], 0, 8)}, "not fully covered"),
        ({"a": entry("F32", [5], 0, 16)}, "invalid|mismatch|not match"),
        ({"a": entry("F32", [-4], 0, 16)}, "-4"),
        ({"a": entry("F32", [2**62, 4], 0, 16)}, "overflow"),
        ({"a": 5}, "invalid type"),
        ({"a": {"shape": [4], "data_offsets": [0, 16]}}, "missing field"),
        (b'{"a\xff":1}', "utf-8"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":{},"a":{}}', "'a' stands twice"),
        (b"[]", "found list"),
    ],
)
def test_what_breaks_the_format(tmp_path, header, said):
    path = write(tmp_path / "a.safetensors", header)
    with pytest.raises(CheckpointError, match=f"not a valid safetensors file .*{said}") as raised:
        read_safetensors(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 16, (50).to_bytes(8, "little")])
def test_files_that_are_cut_off(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a whole safetensors file; download it again"):
        read_safetensors(tmp_path / "a")


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "C64", "novelty", 5])
def test_types_that_are_not_read(tmp_path, dtype):
    path = write(tmp_path / "a", {"x": entry(dtype, [2], 0, 16)})
    with pytest.raises(CheckpointError, match=f"tensor x is stored as {dtype}, which is not sup"):
        read_safetensors(path)


def test_a_side_longer_than_an_array_may_have(tmp_path):
    path = write(tmp_path / "a", {"x": entry("U8", [2**31, 0], 0, 0)}, b"")
    with pytest.raises(CheckpointError, match="tensor x has a side longer than"):
        read_safetensors(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"b\.safetensors is missing; download it again"):
        read_safetensors(tmp_path / "b.safetensors")
