"""Safetensors written tensor by tensor, so that no file is ever in memory as a whole.

The format: 8 bytes with the header's length, the header as JSON (type, shape and place of each
tensor), and the tensors' bytes one after the other
(https://huggingface.co/docs/safetensors, "Format").
"""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import mlx.core as mx

from mlx_speech.checkpoint.elements import type_name

SHARD_BYTES = 5 * 10**9  #: most bytes of tensors in one file, unless one alone has more
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, array: mx.array) -> Self:
        return cls(name, array.dtype, array.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


class ShardWriter:
    """Writes the tensors of a model, in the order announced, to as many files as they need.

    Args:
        folder: where to put the files, and their index.
        specs: all tensors.
        shard_bytes: most bytes of tensors in a file.
    """

    def __init__(self, folder: Path, specs: list[TensorSpec], shard_bytes: int = SHARD_BYTES):
        self._folder = folder
        shards: list[list[TensorSpec]] = [[]]
        size = 0
        for spec in specs:
            if shards[-1] and size + spec.nbytes > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(spec)
            size += spec.nbytes
        count = len(shards)
        names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        self._shards = dict(zip(names if count > 1 else ["model.safetensors"], shards, strict=True))
        self._specs = specs
        self._waiting = iter(specs)
        self._file: BinaryIO = io.BytesIO()  # none is open before the first tensor

    def write(self, name: str, array: mx.array) -> None:
        """Write the next tensor.

        Raises:
            OSError: the disk is full.
        """
        spec = next(self._waiting)
        if spec != TensorSpec.of(name, array):
            raise ValueError(f"{spec} was announced, but {TensorSpec.of(name, array)} came")
        for file, shard in self._shards.items():
            if shard[0] is spec:
                self.close()
                self._file = (self._folder / file).open("wb")
                self._file.write(_header(shard))
        self._file.write(_bytes(array))

    def finish(self) -> None:
        """Write the index, after all tensors."""
        self.close()
        index = {
            "metadata": {"total_size": sum(spec.nbytes for spec in self._specs)},
            "weight_map": {s.name: file for file, shard in self._shards.items() for s in shard},
        }
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        """Close the file that is being written; what is there of it stays."""
        self._file.close()


def save_tensors(file: Path, arrays: dict[str, mx.array]) -> None:
    """Write one file; unlike `mx.save_safetensors`, without a copy of all tensors.

    Raises:
        OSError: the disk is full.
    """
    with file.open("wb") as out:
        out.write(_header([TensorSpec.of(name, array) for name, array in arrays.items()]))
        for array in arrays.values():
            out.write(_bytes(array))


def save_sparse_placeholder(file: Path, header: dict[str, dict]) -> None:
    """Write a file that has a header and room for its tensors, which takes none on the disk."""
    start = _encoded(header)
    with file.open("wb") as out:
        out.write(start)
        size = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        out.truncate(len(start) + size)


def _header(specs: list[TensorSpec]) -> bytes:
    header: dict = {"__metadata__": {"format": "mlx"}}
    start = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": type_name(spec.dtype),
            "shape": spec.shape,
            "data_offsets": [start, start + spec.nbytes],
        }
        start += spec.nbytes
    return _encoded(header)


def _encoded(header: dict) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(array: mx.array) -> memoryview:
    return memoryview(mx.contiguous(array).reshape(-1).view(mx.uint8))
