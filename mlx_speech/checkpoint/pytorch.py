"""Reads `pytorch_model.bin` without torch, and without running what its pickle asks for.

What torch.save writes is a pickle that describes tensors, and beside it their storages as raw
bytes: since torch 1.6 in a zip without compression (NAME/data.pkl, NAME/data/KEY), before that one
after the other in one file ("legacy"). The formats are those of torch/serialization.py.
"""

import io
import mmap
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx

from ..errors import CheckpointError
from .elements import ByteOrder, ElementType, read_elements
from .unpickler import Tensor, Unpickler, kind_of, shown

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_NO_TORCH_FILE = (
    "not a PyTorch checkpoint (neither torch.save's zip nor its older pickle); download it again"
)
_DAMAGED_ZIP = "a truncated or damaged zip; download it again"
# where a storage lies in the file, by its key: first byte and number of bytes
_Records = dict[str, tuple[int, int]]


def read_pytorch_bin(path: str | os.PathLike) -> dict[str, mx.array]:
    """Read a flat dict of tensors that torch.save wrote, in its zip or its older format.

    Types stay as stored, except float64, which becomes float32. Tensors that share a storage
    share memory here too; all arrays together take the room of the file's storages.

    Raises:
        CheckpointError: the file is missing, damaged or no checkpoint, holds anything but a flat
            dict of plain tensors, or its pickle asks for something else; the message names it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError("an empty file; download it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(file, data)
    except FileNotFoundError as error:
        message = f"{path.parent}: {path.name} is missing; download it again"
        raise CheckpointError(message) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read(file: BinaryIO, data: mmap.mmap) -> dict[str, mx.array]:
    if data[:4] == b"PK\3\4":
        tree, records, byteorder = _parse_zip(file, data)
    elif data[:1] == pickle.PROTO:
        tree, records, byteorder = _parse_legacy(data)
    elif data[257:262] == b"ustar":
        message = "in the tar format of torch before 0.2; load and save it once with torch"
        raise CheckpointError(message)
    else:
        raise CheckpointError(_NO_TORCH_FILE)

    if not isinstance(tree, dict):
        raise CheckpointError(f"holds a {kind_of(tree)}, not a dict of tensors")
    for name, value in tree.items():
        if not isinstance(value, Tensor):
            held = f"{shown(name)} holds a {kind_of(value)}"
            raise CheckpointError(f"not a flat dict of tensors: {held}")
        if value.storage.key not in records:
            raise CheckpointError(f"the storage of {shown(name)} is missing; download it again")
    if sum(records[key][1] for key in {t.storage.key for t in tree.values()}) > len(data):
        raise CheckpointError("its storages together are larger than the file")
    return _arrays(file, tree, records, byteorder)


def _arrays(
    file: BinaryIO, tree: dict[str, Tensor], records: _Records, byteorder: ByteOrder
) -> dict[str, mx.array]:
    """Read each storage once; all tensors are views of them."""
    flat: dict[tuple[str, ElementType], mx.array] = {}
    arrays = {}
    for name, tensor in tree.items():
        key, kind = tensor.storage.key, tensor.storage.type
        if 0 in tensor.size:
            arrays[name] = mx.zeros(tensor.size, kind.dtype)
            continue
        if (key, kind) not in flat:
            flat[key, kind] = read_elements(file, *records[key], kind, byteorder)
        # any number may stand where there is nothing to stride over
        strides = [step if n > 1 else 0 for n, step in zip(tensor.size, tensor.stride, strict=True)]
        offset = tensor.storage.start // kind.stored.itemsize + tensor.offset
        arrays[name] = mx.as_strided(flat[key, kind], tensor.size, strides, offset)
    return arrays


def _parse_zip(file: BinaryIO, data: mmap.mmap) -> tuple[object, _Records, ByteOrder]:
    """What the pickle describes; start and size in the file by storage key; the byte order."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{_DAMAGED_ZIP} ({error})") from error
    roots = [name[:-8] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError("a zip, but not a PyTorch checkpoint: it has no data.pkl")

    def record(name: str) -> tuple[int, int]:
        entry = entries[roots[0] + name]
        if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED:
            how = "encrypted" if entry.flag_bits & 1 else "compressed"
            raise CheckpointError(
                f"{shown(name)} in the zip is {how}, which torch.save never does; save it again"
            )
        # the name and the extra field may be longer here than in the zip's directory
        header = data[entry.header_offset : entry.header_offset + 30].ljust(30)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if header[:4] != b"PK\3\4" or start + entry.file_size > len(data):
            raise CheckpointError(_DAMAGED_ZIP)
        return start, entry.file_size

    start, nbytes = record("data.pkl")
    unpickler = Unpickler(io.BytesIO(data[start : start + nbytes]))
    tree = unpickler.load()
    records = {}
    for storage in unpickler.storages.values():
        name = f"data/{storage.key}"
        if roots[0] + name in entries:
            records[storage.key] = record(name)
            if records[storage.key][1] != storage.nbytes:
                raise CheckpointError(f"{shown(name)} in the zip has another size than declared")
    order = b"little"
    if roots[0] + "byteorder" in entries:
        start, nbytes = record("byteorder")
        order = data[start : start + nbytes]
    if order not in (b"little", b"big"):
        raise CheckpointError(f"byte order {order[:20]!r} is unknown")
    return tree, records, "<" if order == b"little" else ">"


def _parse_legacy(data: mmap.mmap) -> tuple[object, _Records, ByteOrder]:
    """As `_parse_zip`; the bytes are little-endian always, whatever machine wrote them."""
    unpickler = Unpickler(data)
    if unpickler.load() != _LEGACY_MAGIC:
        raise CheckpointError(_NO_TORCH_FILE)
    if unpickler.load() != _LEGACY_PROTOCOL:
        raise CheckpointError(f"not of torch.save's protocol {_LEGACY_PROTOCOL}")
    unpickler.load()  # about the machine that wrote it
    tree = unpickler.load()
    keys = unpickler.load()
    records: _Records = {}
    for key in keys if isinstance(keys, list) else [None]:
        storage = unpickler.storages.get(key) if isinstance(key, str) else None
        if storage is None or key is None:
            raise CheckpointError("its list of storages is damaged; download it again")
        count, start = data.read(8), data.tell()
        if len(count) < 8 or start + storage.nbytes > len(data):
            raise CheckpointError("a truncated file; download it again")
        if int.from_bytes(count, "little") * storage.type.stored.itemsize != storage.nbytes:
            raise CheckpointError(f"storage {shown(key)} has another size than declared")
        records[key] = start, storage.nbytes
        data.seek(start + storage.nbytes)
    return tree, records, "<"
