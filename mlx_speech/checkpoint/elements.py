"""What the elements of a tensor are in a file, and what becomes of them in MLX.

Names of types are those of safetensors. Of eight bits are F8_E4M3 and F8_E5M2, which are weights
to be multiplied by scales (https://arxiv.org/abs/2209.05433), and F8_E8M0, such a scale that is a
power of two (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError

#: the longest side that an array may have
MOST_ELEMENTS = 2**31 - 1
ByteOrder = Literal["<", ">"]


@dataclass(frozen=True)
class ElementType:
    """One type of elements.

    name: as in safetensors.
    stored: its bytes in a file.
    dtype: of its values in MLX.
    decode: bytes, as MLX reads them, to values; by default they only change their type.
    in_mlx: whether MLX reads it from safetensors.
    """

    name: str
    stored: np.dtype
    dtype: mx.Dtype
    decode: Callable[[mx.array], mx.array] | None = None
    in_mlx: bool = True

    def values(self, stored: mx.array) -> mx.array:
        """What elements stand for, as they are in a file or as MLX reads them from safetensors."""
        return stored.astype(self.dtype) if self.decode is None else self.decode(stored)


def _bfloat16(stored: mx.array) -> mx.array:
    return stored.view(mx.bfloat16)


def _e5m2(stored: mx.array) -> mx.array:
    """They are the upper halves of float16."""
    return (stored.astype(mx.uint16) << 8).view(mx.float16)


def _e8m0(stored: mx.array) -> mx.array:
    return mx.power(2.0, stored.astype(mx.float32) - 127)


#: by their names; what is not among them is in no checkpoint that MLX could compute with
ELEMENT_TYPES = {
    kind.name: kind
    for kind in (
        ElementType("F64", np.dtype("f8"), mx.float32, in_mlx=False),
        ElementType("F32", np.dtype("f4"), mx.float32),
        ElementType("F16", np.dtype("f2"), mx.float16),
        ElementType("BF16", np.dtype("u2"), mx.bfloat16, _bfloat16),
        ElementType("F8_E4M3", np.dtype("u1"), mx.bfloat16, mx.from_fp8),
        ElementType("F8_E5M2", np.dtype("u1"), mx.float16, _e5m2, in_mlx=False),
        ElementType("F8_E8M0", np.dtype("u1"), mx.float32, _e8m0),
        ElementType("I64", np.dtype("i8"), mx.int64),
        ElementType("I32", np.dtype("i4"), mx.int32),
        ElementType("I16", np.dtype("i2"), mx.int16),
        ElementType("I8", np.dtype("i1"), mx.int8),
        ElementType("U64", np.dtype("u8"), mx.uint64),
        ElementType("U32", np.dtype("u4"), mx.uint32),
        ElementType("U16", np.dtype("u2"), mx.uint16),
        ElementType("U8", np.dtype("u1"), mx.uint8),
        ElementType("BOOL", np.dtype("u1"), mx.bool_),
    )
}


def read_elements(
    file: BinaryIO, start: int, nbytes: int, kind: ElementType, byteorder: ByteOrder = "<"
) -> mx.array:
    """A range of a file, flat; it is mapped for no longer than it takes to copy it.

    Raises:
        CheckpointError: it is too long.
    """
    count = nbytes // kind.stored.itemsize
    if count > MOST_ELEMENTS:
        raise CheckpointError(f"a storage of {count} elements is more than an MLX array can hold")
    elements = np.memmap(file, kind.stored.newbyteorder(byteorder), "r", start, (count,))
    return kind.values(mx.array(elements.astype(kind.stored, copy=False)))


def read_part(
    file: BinaryIO,
    start: int,
    shape: Sequence[int],
    kind: ElementType,
    *,
    axis: int,
    rank: int,
    size: int,
) -> mx.array:
    """One of `size` equal parts of a tensor along an axis, that of a rank; nothing else is read.

    Args:
        start: where the tensor is in the file.
        shape: of all of it.

    Raises:
        CheckpointError: the file is shorter than that.
    """
    rows, own = math.prod(shape[:axis]), [*shape[:axis], shape[axis] // size, *shape[axis + 1 :]]
    nbytes = math.prod(own[axis:]) * kind.stored.itemsize
    places = (start + (row * size + rank) * nbytes for row in range(rows))
    pieces = [os.pread(file.fileno(), nbytes, place) for place in places]
    if any(len(piece) < nbytes for piece in pieces):
        raise CheckpointError(f"{file.name}: became shorter while it was read")
    elements = np.frombuffer(b"".join(pieces), kind.stored.newbyteorder("<"))
    return kind.values(mx.array(elements.astype(kind.stored, copy=False)).reshape(own))


def type_name(dtype: mx.Dtype) -> str:
    """The name of the type that MLX's own has: `F32` of float32, and so `BF16`, `U8` and `BOOL`."""
    name = str(dtype).rpartition(".")[2].upper()
    return name.replace("FLOAT", "F").replace("UINT", "U").replace("INT", "I")
