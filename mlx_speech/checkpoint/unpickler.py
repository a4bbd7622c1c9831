"""What a pickle of torch.save describes, found out without running anything that it names.

A pickle is a program that may call any function. Here it is run by Python's own unpickler, with
only those operations that describe plain containers and tensors, and only the names on a list.

That is the unpickler written in Python: the one in C gives no say in what is hashed, where a
crafted tuple takes forever, and has an array for a memo, as long as a crafted number says.
"""

import math
import pickle
import struct
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..errors import CheckpointError
from .elements import ELEMENT_TYPES, MOST_ELEMENTS, ElementType

_MOST_DIMENSIONS = 64  # that an array may have


@dataclass(frozen=True)
class Storage:
    """A range of bytes in the storage that `key` names."""

    key: str
    type: ElementType
    start: int
    nbytes: int


@dataclass(frozen=True)
class Tensor:
    """Offset and strides count elements, of the storage's type, from the start of its range."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage, offset, size, stride, _grad=None, _hooks=None, metadata=None):
    """A tensor that lies within its storage, or CheckpointError."""
    _first(Storage, storage)
    if metadata:
        raise CheckpointError("refused: a conjugated or negated tensor is no plain one")
    itemsize = storage.type.stored.itemsize
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
    return Tensor(storage, offset, size, stride)


def _rebuild_tensor_v3(storage, offset, size, stride, _grad, _hooks, kind, metadata=None):
    storage = replace(_first(Storage, storage), type=_first(ElementType, kind))
    return _rebuild_tensor(storage, offset, size, stride, metadata=metadata)


def _first(kind: type, value, *_ignored):
    """The first of some arguments, which is of that type."""
    if not isinstance(value, kind):
        raise TypeError
    return value


# whatever a pickle may name; only the functions can be called
_ALLOWED = {
    "torch.DoubleStorage": ELEMENT_TYPES["F64"],
    "torch.FloatStorage": ELEMENT_TYPES["F32"],
    "torch.HalfStorage": ELEMENT_TYPES["F16"],
    "torch.BFloat16Storage": ELEMENT_TYPES["BF16"],
    "torch.LongStorage": ELEMENT_TYPES["I64"],
    "torch.IntStorage": ELEMENT_TYPES["I32"],
    "torch.ShortStorage": ELEMENT_TYPES["I16"],
    "torch.CharStorage": ELEMENT_TYPES["I8"],
    "torch.ByteStorage": ELEMENT_TYPES["U8"],
    "torch.BoolStorage": ELEMENT_TYPES["BOOL"],
    "torch.storage.UntypedStorage": ELEMENT_TYPES["U8"],
    "torch.uint16": ELEMENT_TYPES["U16"],
    "torch.uint32": ELEMENT_TYPES["U32"],
    "torch.uint64": ELEMENT_TYPES["U64"],
    "torch.float8_e4m3fn": ELEMENT_TYPES["F8_E4M3"],
    "torch.float8_e5m2": ELEMENT_TYPES["F8_E5M2"],
    "torch.float8_e8m0fnu": ELEMENT_TYPES["F8_E8M0"],
    "collections.OrderedDict": lambda: {},
    "torch.Size": partial(_first, tuple),
    "torch._utils._rebuild_parameter": partial(_first, Tensor),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
}


# whose stubs do not know Python's machine
_Machine: Any = pickle._Unpickler
# operations that are run as it does it
_USED = (
    "PROTO STOP MARK BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT1 "
    "BININT2 BININT LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "TUPLE EMPTY_LIST APPEND APPENDS EMPTY_DICT STACK_GLOBAL BINPERSID REDUCE"
)


def _code(operation: str) -> int:
    return getattr(pickle, operation)[0]


class _Operations(dict):
    def __missing__(self, operation: int):
        raise CheckpointError(
            f"refused: its pickle has the operation {bytes([operation])!r}, "
            "which no dict of tensors needs"
        )


class Unpickler(_Machine):
    """Describes what the pickles of a file describe, one with each `load`.

    Dicts (ordered ones too), lists, tuples, numbers and text come out as themselves, tensors as
    `Tensor`. Every operation costs no more memory than its bytes in the file.

    Raises:
        CheckpointError: the pickle is damaged, or asks for anything else.
    """

    dispatch = _Operations({op: _Machine.dispatch[op] for op in map(_code, _USED.split())})

    def __init__(self, file):
        super().__init__(file)
        self.storages: dict[str, Storage] = {}  #: whole storages by key

    def load(self) -> object:
        self.memo.clear()
        try:
            return super().load()
        except EOFError as error:
            raise CheckpointError("a truncated file; download it again") from error
        except (AttributeError, TypeError) as error:
            message = "refused: its pickle does something else than describe plain tensors"
            raise CheckpointError(message) from error
        except (pickle.UnpicklingError, LookupError, ValueError, struct.error) as error:
            raise CheckpointError("its pickle is damaged; download it again") from error

    def find_class(self, module: str, name: str) -> object:
        if f"{module}.{name}" not in _ALLOWED:
            raise CheckpointError(
                f"refused: its pickle asks for {shown(f'{module}.{name}')}, and only plain tensors "
                "by name are read"
            )
        return _ALLOWED[f"{module}.{name}"]

    def persistent_load(self, pid: object) -> Storage:
        """The storage that a persistent id means: of a zip's five fields, or of legacy's six."""
        match pid:
            case ("storage", ElementType() as kind, str(key), _, int(count), *view):
                itemsize = kind.stored.itemsize
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

    def _frame(self) -> None:
        self.read(8)  # its length, which says nothing that its operations do not

    def _global(self) -> None:
        module, name = self.readline(), self.readline()
        if not name.endswith(b"\n"):
            raise EOFError
        self.append(self.find_class(module[:-1].decode(), name[:-1].decode()))

    def _set_items(self, items: list[Any] | None = None) -> None:
        items = self.pop_mark() if items is None else items
        for key, value in zip(items[::2], items[1::2], strict=True):
            _first(dict, self.stack[-1])
            # nothing else is hashed: a crafted tuple would take forever
            if not isinstance(key, str):
                raise CheckpointError(f"a dict has a {kind_of(key)} for a key, not a name")
            self.stack[-1][key] = value

    def _set_one_item(self) -> None:
        self._set_items([self.stack.pop(-2), self.stack.pop()])

    def _build(self) -> None:
        """Attributes of an ordered dict, such as the _metadata of a state dict, are left out."""
        state, target = self.stack.pop(), self.stack[-1]
        if not (isinstance(state, dict) and isinstance(target, dict)):
            raise CheckpointError(f"refused: its pickle sets the state of a {kind_of(target)}")

    dispatch[pickle.FRAME[0]] = _frame
    dispatch[pickle.GLOBAL[0]] = _global
    dispatch[pickle.SETITEM[0]] = _set_one_item
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.BUILD[0]] = _build


def kind_of(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, int | float):
        return "number"
    kind = type(value).__name__
    return f"{kind} of {len(value)} entries" if isinstance(value, dict | list | tuple) else kind


def shown(text: str) -> str:
    """Text of a file as it may stand in a message: on one line, and not too long."""
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
