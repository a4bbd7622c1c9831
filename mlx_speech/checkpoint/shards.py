"""Safetensors written tensor by tensor, so that no file is ever in memory as a whole.

The format: 8 bytes with the header's length, the header as JSON (type, shape and place of each
tensor), and the tensors' bytes one after the other
(https://huggingface.co/docs/safetensors, "Format").
"""

import json
import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self

import mlx.core as mx

from ..errors import InputError
from .elements import type_name

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
        max_shard_size: most bytes of tensors in a file, unless one alone has more; a number, or a
            text such as "5GB".
        layout: what the header says of the tensors' layouts: "pt" for those of transformers, else
            "mlx".
        separate: see `PretrainedModel.separate_files`; what is in them has no place in the index.

    Raises:
        InputError: `max_shard_size` is no size.
    """

    def __init__(
        self,
        folder: Path,
        specs: Iterable[TensorSpec],
        max_shard_size: int | str = "5GB",
        layout: str = "mlx",
        *,
        separate: dict[str, str] | None = None,
    ):
        from huggingface_hub import split_state_dict_into_shards_factory

        self._folder, self._layout = folder, layout
        self._specs = {spec.name: spec for spec in specs}
        #: file of each tensor, and its name there
        self._places = {
            name: (file, name.removeprefix(start))
            for file, start in (separate or {}).items()
            for name in self._specs
            if name.startswith(start)
        }
        rule = 'a number of bytes, or of KB, MB, GB or TB as in "5GB"'
        try:
            self._split = split_state_dict_into_shards_factory(
                {name: spec for name, spec in self._specs.items() if name not in self._places},
                get_storage_size=lambda spec: spec.nbytes,
                filename_pattern="model{suffix}.safetensors",
                max_shard_size=max_shard_size,
            )
        except (TypeError, ValueError):
            raise InputError.must_be("max_shard_size", max_shard_size, rule) from None
        self._places |= {name: (f, name) for name, f in self._split.tensor_to_filename.items()}
        self._held: dict[str, list[str]] = {}
        for name in self._specs:
            self._held.setdefault(self._places[name][0], []).append(name)
        self._waiting = iter(self._specs.values())
        self._files: dict[str, BinaryIO] = {}
        self._open = ExitStack()

    def write(self, name: str, array: mx.array) -> None:
        """Write the next tensor.

        Raises:
            OSError: the disk is full.
        """
        spec = next(self._waiting)
        if spec != TensorSpec.of(name, array):
            raise ValueError(f"{spec} was announced, but {TensorSpec.of(name, array)} came")
        file, _ = self._places[name]
        held = self._held[file]
        if name == held[0]:
            # a shard of one large tensor stands between two parts of another one
            self._files[file] = self._open.enter_context((self._folder / file).open("wb"))
            specs = (replace(self._specs[n], name=self._places[n][1]) for n in held)
            self._files[file].write(_header(specs, self._layout))
        self._files[file].write(_bytes(array))
        if name == held[-1]:
            self._files[file].close()

    def finish(self) -> None:
        """Write the index, after all tensors."""
        index = {"metadata": self._split.metadata, "weight_map": self._split.tensor_to_filename}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        """Close the files that are being written; what is there of them stays."""
        self._open.close()


def save_tensors(file: Path, arrays: dict[str, mx.array], layout: str = "mlx") -> None:
    """Write one file; unlike `mx.save_safetensors`, without a copy of all tensors.

    Raises:
        OSError: the disk is full.
    """
    with file.open("wb") as out:
        out.write(_header((TensorSpec.of(name, array) for name, array in arrays.items()), layout))
        for array in arrays.values():
            out.write(_bytes(array))


def save_sparse_placeholder(file: Path, header: dict[str, dict]) -> None:
    """Write a file that has a header and room for its tensors, which takes none on the disk."""
    start = _encoded(header)
    with file.open("wb") as out:
        out.write(start)
        size = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        out.truncate(len(start) + size)


def _header(specs: Iterable[TensorSpec], layout: str) -> bytes:
    header: dict = {"__metadata__": {"format": layout}}
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
