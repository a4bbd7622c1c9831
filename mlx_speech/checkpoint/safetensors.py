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
from ..layers.sharding import ShardingGroup
from .elements import ELEMENT_TYPES, MOST_ELEMENTS, read_elements, read_part
from .folder import parse_json, printable

_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000  # what the safetensors library takes


def read_safetensors(file: Path, sharding: ShardingGroup | None = None) -> dict[str, mx.array]:
    """One safetensors file, memory-mapped where MLX can do that; floats of 8 bits as the values
    that they stand for, in 16.

    Args:
        sharding: of layers that are shared out, no more than this rank's part is read.

    Raises:
        CheckpointError: it is missing or damaged, or a tensor has a type that is not read.
        UnsupportedOptionError: a tensor cannot be shared out.
    """
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: {file.name} is missing; download it again")
    with file.open("rb") as opened:
        header, start = _header(opened, file)
        _check(header, file, file.stat().st_size - start)
        parts = {} if sharding is None else _parts(opened, start, header, sharding)
        if all(ELEMENT_TYPES[tensor["dtype"]].in_mlx for tensor in header.values()):
            loaded = mx.load(str(file), format="safetensors")
            whole = {k: ELEMENT_TYPES[header[k]["dtype"]].values(v) for k, v in loaded.items()}
        else:
            rest = {name: header[name] for name in header.keys() - parts.keys()}
            whole = {name: _tensor(opened, start, tensor) for name, tensor in rest.items()}
        if sharding is not None:
            whole = {name: sharding.term(name, value) for name, value in whole.items()}
        return whole | parts


def _header(opened: BinaryIO, file: Path) -> tuple[dict[str, Any], int]:
    """What the header says of each tensor, and where the tensors' bytes begin."""
    stated, size = opened.read(_LENGTH_BYTES), file.stat().st_size
    length = int.from_bytes(stated, "little")
    if len(stated) < _LENGTH_BYTES or length > min(size, _LONGEST_HEADER_BYTES):
        raise _refused(file, "its header is longer than it is", cut=True)
    try:
        header = parse_json(opened.read(length))
    except CheckpointError as error:
        raise _refused(file, error) from error
    header.pop("__metadata__", None)
    return header, _LENGTH_BYTES + length


def _check(header: dict[str, Any], file: Path, size: int) -> None:
    """Refuse what is unknown, then whatever breaks the rules of the format: tensors that overlap,
    or leave bytes between them or at the end.

    Args:
        size: of all tensors, in bytes.
    """
    for name, tensor in header.items():
        stated = tensor.get("dtype") if isinstance(tensor, dict) else None
        known = isinstance(stated, str) and stated in ELEMENT_TYPES
        if stated is not None and not known:
            message = f"tensor {printable(name)} is stored as {stated}, which is not supported"
            raise CheckpointError(f"{file}: {message}; take the checkpoint that it was made from")
    try:
        with safe_open(file, "numpy"):
            pass
    except (SafetensorError, OSError) as error:
        ends = [
            tensor.get("data_offsets") for tensor in header.values() if isinstance(tensor, dict)
        ]
        last = [end[-1] for end in ends if isinstance(end, list) and end]
        cut = any(isinstance(end, int) and end > size for end in last)
        raise _refused(file, error, cut) from error
    for name, tensor in header.items():
        if max(tensor["shape"], default=0) > MOST_ELEMENTS:
            message = f"tensor {printable(name)} has a side longer than an MLX array can have"
            raise CheckpointError(f"{file}: {message}")


def _refused(file: Path, reason: object, cut: bool = False) -> CheckpointError:
    """The error for a file that is cut short, or else is not what the format demands."""
    what = "not a whole safetensors file; download it again"
    return CheckpointError(f"{file}: {what if cut else 'not a valid safetensors file'} ({reason})")


def _parts(
    opened: BinaryIO, start: int, header: dict[str, Any], sharding: ShardingGroup
) -> dict[str, mx.array]:
    """A rank's parts of the tensors that are shared out."""
    axes = {name: sharding.axis(name, tuple(told["shape"])) for name, told in header.items()}
    found = {}
    for name, axis in axes.items():
        if axis is not None:
            told, own = header[name], {"axis": axis, "rank": sharding.rank, "size": sharding.size}
            whole = start + told["data_offsets"][0], told["shape"], ELEMENT_TYPES[told["dtype"]]
            found[name] = read_part(opened, *whole, **own)
    return found


def _tensor(opened: BinaryIO, start: int, tensor: dict[str, Any]) -> mx.array:
    kind, (first, end) = ELEMENT_TYPES[tensor["dtype"]], tensor["data_offsets"]
    if first == end:
        return mx.zeros(tensor["shape"], kind.dtype)
    return read_elements(opened, start + first, end - first, kind).reshape(tensor["shape"])
