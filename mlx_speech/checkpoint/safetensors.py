"""Reads safetensors files, and checks first what MLX's own reader takes for granted.

The format: 8 bytes with the header's length, the header as JSON (type, shape and place of each
tensor), and the tensors' bytes one after the other
(https://huggingface.co/docs/safetensors, "Format").
"""

from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .elements import ELEMENT_TYPES, MOST_ELEMENTS, read_elements
from .folder import parse_json, printable

_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000  # what the safetensors library takes


def read_safetensors(file: Path) -> dict[str, mx.array]:
    """One safetensors file, memory-mapped where MLX can do that; floats of 8 bits as the values
    that they stand for, in 16.

    Raises:
        CheckpointError: it is missing or damaged, or a tensor has a type that is not read.
    """
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: {file.name} is missing; download it again")
    with file.open("rb") as opened:
        header, start = _header(opened, file)
        _check(header, file)
        if all(ELEMENT_TYPES[tensor["dtype"]].in_mlx for tensor in header.values()):
            loaded = mx.load(str(file), format="safetensors")
            return {k: ELEMENT_TYPES[header[k]["dtype"]].values(v) for k, v in loaded.items()}
        return {name: _tensor(opened, start, tensor) for name, tensor in header.items()}


def _header(opened: BinaryIO, file: Path) -> tuple[dict[str, Any], int]:
    """What the header says of each tensor, and where the tensors' bytes begin."""
    length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
    try:
        if length > min(file.stat().st_size, _LONGEST_HEADER_BYTES):
            raise CheckpointError("its header is longer than it is")
        header = parse_json(opened.read(length))
    except CheckpointError as error:
        message = f"{file}: not a whole safetensors file; download it again ({error})"
        raise CheckpointError(message) from error
    header.pop("__metadata__", None)
    return header, _LENGTH_BYTES + length


def _check(header: dict[str, Any], file: Path) -> None:
    """Refuse what is unknown, then whatever breaks the rules of the format: tensors that overlap,
    or leave bytes between them or at the end."""
    for name, tensor in header.items():
        stated = tensor.get("dtype") if isinstance(tensor, dict) else None
        if isinstance(stated, str) and stated not in ELEMENT_TYPES:
            message = f"tensor {printable(name)} is stored as {stated}, which is not supported"
            raise CheckpointError(f"{file}: {message}; take the checkpoint that it was made from")
    try:
        with safe_open(file, "numpy"):
            pass
    except (SafetensorError, OSError) as error:
        message = f"{file}: not a whole safetensors file; download it again ({error})"
        raise CheckpointError(message) from error
    for name, tensor in header.items():
        if max(tensor["shape"], default=0) > MOST_ELEMENTS:
            message = f"tensor {printable(name)} has a side longer than an MLX array can have"
            raise CheckpointError(f"{file}: {message}")


def _tensor(opened: BinaryIO, start: int, tensor: dict[str, Any]) -> mx.array:
    kind, (first, end) = ELEMENT_TYPES[tensor["dtype"]], tensor["data_offsets"]
    if first == end:
        return mx.zeros(tensor["shape"], kind.dtype)
    return read_elements(opened, start + first, end - first, kind).reshape(tensor["shape"])
