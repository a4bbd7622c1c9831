"""Files of torch.save's two formats, written without torch, their pickles by the operation."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech import CheckpointError
from mlx_speech.checkpoint.pytorch import read_pytorch_bin

FORMATS = pytest.mark.parametrize("kind", ["zip", "legacy"])
FOUR = np.arange(4, dtype=np.float32).tobytes()

STORAGES = {
    mx.float32: ("FloatStorage", mx.uint8),
    mx.float16: ("HalfStorage", mx.uint8),
    mx.bfloat16: ("BFloat16Storage", mx.uint8),
    mx.int64: ("LongStorage", mx.uint8),
    mx.int8: ("CharStorage", mx.uint8),
    mx.uint8: ("ByteStorage", mx.uint8),
    mx.bool_: ("BoolStorage", mx.uint8),
}


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return pickle.LONG1 + bytes([size]) + value.to_bytes(size, "little", signed=True)


def named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def several(*items: bytes) -> bytes:
    """A tuple."""
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def numbers(values) -> bytes:
    return several(*(number(value) for value in values))


def storage(key: str, count: int, *view: bytes, kind: str = "FloatStorage") -> bytes:
    fields = (text("storage"), named("torch", kind), text(key), text("cpu"), number(count), *view)
    return several(*fields) + pickle.BINPERSID


def tensor(stored: bytes, offset: int, size, stride) -> bytes:
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    hooks = named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    place = (number(offset), numbers(size), numbers(stride))
    return rebuild + several(stored, *place, pickle.NEWFALSE, hooks) + pickle.REDUCE


def mapping(items: dict[str, bytes]) -> bytes:
    pairs = b"".join(text(name) + value for name, value in items.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def pickled(body: bytes) -> bytes:
    return pickle.PROTO + b"\2" + body + pickle.STOP


def write_zip(
    path: Path,
    pickle_bytes: bytes,
    storages: dict[str, bytes],
    *,
    byteorder: str = "little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            # as torch does it for files beyond 4 GiB
            with archive.open(f"archive/data/{key}", "w", force_zip64=True) as entry:
                entry.write(data)
    return path


def write_legacy(path: Path, pickle_bytes: bytes, storages: dict[str, tuple[int, bytes]]) -> Path:
    """Storages are given as number of elements and bytes."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [pickle.dumps(value, 2) for value in head]
    parts += [pickle_bytes, pickle.dumps(list(storages), 2)]
    parts += [count.to_bytes(8, "little") + data for count, data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def write(kind: str, path: Path, pickle_bytes: bytes) -> Path:
    """A checkpoint with this pickle, and storage "0" of four float32."""
    if kind == "zip":
        return write_zip(path, pickle_bytes, {"0": FOUR})
    return write_legacy(path, pickle_bytes, {"0": (4, FOUR)})


def four(kind: str, key: str = "0", count: int = 4) -> bytes:
    return storage(key, count, *([pickle.NONE] if kind == "legacy" else []))


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pytorch_bin(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250
    return message


def save_pytorch_bin(path: Path, weights: dict[str, mx.array]) -> None:
    """What `torch.save` writes of a dict of arrays."""
    tensors, storages = {}, {}
    for key, (name, value) in enumerate(weights.items()):
        kind, byte = STORAGES[value.dtype]
        strides = np.cumprod((1, *value.shape[:0:-1]))[::-1].tolist()[: value.ndim]
        stored = storage(str(key), value.size, kind=kind)
        tensors[name] = tensor(stored, 0, value.shape, strides)
        storages[str(key)] = np.array(value.flatten().view(byte)).tobytes()
    write_zip(path, pickled(mapping(tensors)), storages)
