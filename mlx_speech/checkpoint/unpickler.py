"""What a pickle of torch.save describes, found out without running anything that it names.

A pickle is a program that may call any function. The machine here has only those operations of
Python's pickle module that describe plain containers and tensors. A global is nothing but a name
to it, and one that is not on the list is refused.
"""

from __future__ import annotations

import math
import mmap
import pickle
import struct
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError

# by the global that a pickle names: what one element is in the file, and in MLX
ELEMENT_TYPES = {
    "torch.DoubleStorage": (np.dtype("f8"), mx.float32),
    "torch.FloatStorage": (np.dtype("f4"), mx.float32),
    "torch.HalfStorage": (np.dtype("f2"), mx.float16),
    "torch.BFloat16Storage": (np.dtype("u2"), mx.bfloat16),
    "torch.LongStorage": (np.dtype("i8"), mx.int64),
    "torch.IntStorage": (np.dtype("i4"), mx.int32),
    "torch.ShortStorage": (np.dtype("i2"), mx.int16),
    "torch.CharStorage": (np.dtype("i1"), mx.int8),
    "torch.ByteStorage": (np.dtype("u1"), mx.uint8),
    "torch.BoolStorage": (np.dtype("u1"), mx.bool_),
    "torch.storage.UntypedStorage": (np.dtype("u1"), mx.uint8),
    "torch.uint16": (np.dtype("u2"), mx.uint16),
    "torch.uint32": (np.dtype("u4"), mx.uint32),
    "torch.uint64": (np.dtype("u8"), mx.uint64),
}
_CALLS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}
# the longest side and the most sides that an array may have
MOST_ELEMENTS = 2**31 - 1
_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class Storage:
    """A range of bytes in the storage that `key` names."""

    key: str
    type: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class Tensor:
    """Offset and strides count elements from the start of the storage's range."""

    storage: Storage
    type: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Unpickler:
    """Describes what a pickle describes; calls nothing that the pickle names.

    Dicts (ordered ones too), lists, tuples, numbers and text come out as themselves, tensors as
    `Tensor`. Every operation costs no more memory than its bytes in the file.

    Raises (all methods):
        CheckpointError: the pickle is damaged, or asks for anything else.
    """

    def __init__(self, data: bytes | mmap.mmap):
        self.data = data
        self.position = 0
        #: whole storages by key
        self.storages: dict[str, Storage] = {}

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self.data):
            raise CheckpointError("a truncated file; download it again")

    def take(self, count: int) -> bytes:
        start = self.position
        self.skip(count)
        return self.data[start : self.position]

    def load(self) -> object:
        """Run one pickle, from `position` to its end."""
        try:
            return self._run()
        except (IndexError, KeyError, UnicodeDecodeError) as error:
            raise CheckpointError("its pickle is damaged; download it again") from error

    def _run(self) -> object:
        stack: list = []
        marks: list[int] = []
        memo: dict[int, object] = {}

        def popped(count: int) -> list:
            if count > len(stack):
                raise IndexError
            items = stack[len(stack) - count :]
            del stack[len(stack) - count :]
            return items

        def marked() -> list:
            return popped(max(len(stack) - marks.pop(), 0))

        while True:
            match operation := self.take(1):
                case pickle.PROTO:
                    self.skip(1)
                case pickle.FRAME:
                    self.skip(8)
                case pickle.STOP:
                    return stack.pop()
                case pickle.MARK:
                    marks.append(len(stack))
                case pickle.BINPUT:
                    memo[self._number(1)] = stack[-1]
                case pickle.LONG_BINPUT:
                    memo[self._number(4)] = stack[-1]
                case pickle.MEMOIZE:
                    memo[len(memo)] = stack[-1]
                case pickle.BINGET:
                    stack.append(memo[self._number(1)])
                case pickle.LONG_BINGET:
                    stack.append(memo[self._number(4)])
                case pickle.NONE:
                    stack.append(None)
                case pickle.NEWTRUE:
                    stack.append(True)
                case pickle.NEWFALSE:
                    stack.append(False)
                case pickle.BININT1:
                    stack.append(self._number(1))
                case pickle.BININT2:
                    stack.append(self._number(2))
                case pickle.BININT:
                    stack.append(self._number(4, signed=True))
                case pickle.LONG1:
                    stack.append(self._number(self._number(1), signed=True))
                case pickle.BINFLOAT:
                    stack.extend(struct.unpack(">d", self.take(8)))
                case pickle.SHORT_BINUNICODE:
                    stack.append(self.take(self._number(1)).decode())
                case pickle.BINUNICODE:
                    stack.append(self.take(self._number(4)).decode())
                case pickle.EMPTY_TUPLE:
                    stack.append(())
                case pickle.TUPLE1:
                    stack.append(tuple(popped(1)))
                case pickle.TUPLE2:
                    stack.append(tuple(popped(2)))
                case pickle.TUPLE3:
                    stack.append(tuple(popped(3)))
                case pickle.TUPLE:
                    stack.append(tuple(marked()))
                case pickle.EMPTY_LIST:
                    stack.append([])
                case pickle.APPEND:
                    _extend(popped(1), stack[-1])
                case pickle.APPENDS:
                    _extend(marked(), stack[-1])
                case pickle.EMPTY_DICT:
                    stack.append({})
                case pickle.SETITEM:
                    _update(popped(2), stack[-1])
                case pickle.SETITEMS:
                    _update(marked(), stack[-1])
                case pickle.GLOBAL:
                    stack.append(_allowed(self._line(), self._line()))
                case pickle.STACK_GLOBAL:
                    stack.append(_allowed(*popped(2)))
                case pickle.BINPERSID:
                    stack.append(self._persistent(stack.pop()))
                case pickle.REDUCE:
                    stack.append(_reduce(*popped(2)))
                case pickle.BUILD:
                    # attributes of an ordered dict, such as the _metadata of a state dict
                    state, target = stack.pop(), stack[-1]
                    if not (isinstance(state, dict) and isinstance(target, dict)):
                        raise CheckpointError(
                            f"refused: its pickle sets the state of a {kind_of(target)}"
                        )
                case _:
                    raise CheckpointError(
                        f"refused: its pickle has the operation {operation!r}, "
                        "which no dict of tensors needs"
                    )

    def _number(self, nbytes: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(nbytes), "little", signed=signed)

    def _line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise IndexError
        return self.take(end + 1 - self.position)[:-1].decode()

    def _persistent(self, identifier: object) -> Storage:
        """The storage that a persistent id means: of a zip's five fields, or of legacy's six."""
        match identifier:
            case ("storage", _Global(kind), str(key), _, int(count), *view) if (
                kind in ELEMENT_TYPES
            ):
                itemsize = ELEMENT_TYPES[kind][0].itemsize
                whole = Storage(key, kind, 0, count * itemsize)
                if count < 0 or self.storages.setdefault(key, whole) != whole:
                    raise CheckpointError(f"storage {shown(key)} is declared in two ways")
                match view:
                    case [] | [None]:
                        return whole
                    # a view into another storage, as torch before 0.4 wrote it
                    case [(str(), int(first), int(n))] if 0 <= first <= first + n <= count:
                        return Storage(key, kind, first * itemsize, n * itemsize)
        raise CheckpointError("refused: its pickle has a persistent id that names no storage")


def _allowed(module: object, name: object) -> _Global:
    found = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else None
    if found not in _CALLS and found not in ELEMENT_TYPES:
        raise CheckpointError(
            f"refused: its pickle asks for {shown(found or kind_of(name))}, and only plain tensors "
            "by name are read"
        )
    return _Global(found)


def _reduce(function: object, arguments: object) -> object:
    """What a call would give."""
    match function, arguments:
        case _Global("collections.OrderedDict"), ():
            return {}
        case _Global("torch.Size"), (tuple(size),):
            return size
        case _Global("torch._utils._rebuild_parameter"), (Tensor() as tensor, _, _):
            return tensor
        case (
            _Global("torch._utils._rebuild_tensor"),
            (Storage() as storage, offset, size, stride),
        ):
            return _tensor(storage, storage.type, offset, size, stride)
        case (
            _Global("torch._utils._rebuild_tensor_v2"),
            (Storage() as storage, offset, size, stride, _, _, *metadata),
        ) if not any(metadata):
            return _tensor(storage, storage.type, offset, size, stride)
        case (
            _Global("torch._utils._rebuild_tensor_v3"),
            (Storage() as storage, offset, size, stride, _, _, _Global(kind), *metadata),
        ) if kind in ELEMENT_TYPES and not any(metadata):
            return _tensor(storage, kind, offset, size, stride)
    raise CheckpointError(
        f"refused: its pickle calls a {kind_of(function)} with arguments that make no plain tensor"
    )


def _tensor(storage: Storage, kind: str, offset: object, size: object, stride: object) -> Tensor:
    """A tensor that lies within its storage, or CheckpointError."""
    itemsize = ELEMENT_TYPES[kind][0].itemsize
    if not (
        isinstance(size, tuple)
        and isinstance(stride, tuple)
        and len(size) == len(stride) <= _MOST_DIMENSIONS
        and all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
        and storage.start % itemsize == 0
        and math.prod(max(n, 1) for n in size) <= MOST_ELEMENTS
    ):
        raise CheckpointError("a tensor has an impossible offset, size or stride")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.nbytes // itemsize:
        raise CheckpointError(f"a tensor reaches past the end of storage {shown(storage.key)}")
    return Tensor(storage, kind, offset, size, stride)


def _extend(items: list, target: object) -> None:
    if not isinstance(target, list):
        raise CheckpointError(f"refused: its pickle appends to a {kind_of(target)}")
    target.extend(items)


def _update(items: list, target: object) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise CheckpointError(f"refused: its pickle sets items of a {kind_of(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # nothing else is hashed: a crafted tuple would take forever
        if not isinstance(key, str):
            raise CheckpointError(f"a dict has a {kind_of(key)} for a key, not a name")
        target[key] = value


def kind_of(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, _Global):
        return value.name
    if isinstance(value, (Tensor, Storage)):
        return type(value).__name__.lower()
    if isinstance(value, (int, float)):
        return "number"
    entries = f" of {len(value)} entries" if isinstance(value, (dict, list, tuple)) else ""
    return type(value).__name__ + entries


def shown(text: str) -> str:
    """Text of a file as it may stand in a message: on one line, and not too long."""
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
