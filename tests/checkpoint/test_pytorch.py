"""pytorch_model.bin without torch: what torch wrote is read, what asks for more is refused."""

from __future__ import annotations

import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, ROOT
from pytorch_files import (
    FORMATS,
    FOUR,
    error_of,
    four,
    mapping,
    named,
    number,
    numbers,
    pickled,
    save_pytorch_bin,
    several,
    storage,
    tensor,
    text,
    write,
    write_legacy,
    write_zip,
)

from mlx_speech import CheckpointError
from mlx_speech.checkpoint.pytorch import read_pytorch_bin

FILES = DATA / "pytorch_bin"
SHARED = ROOT.parent / "shared" / "checkpoints"
FLOAT = named("torch", "FloatStorage")
WRITTEN_BY_TORCH = ("zip.bin", "zip_protocol4.bin", "legacy.bin")


# What torch writes


@pytest.mark.parametrize("name", WRITTEN_BY_TORCH)
def test_everything_that_torch_writes(name):
    expected = mx.load(str(FILES / "expected.safetensors"))
    found = read_pytorch_bin(FILES / name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        assert mx.array_equal(found[key], value).item(), key
    assert found["view.transposed"].tolist()[1] == [1, 7, 13, 19]
    assert found["overlapping"].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert len({v.dtype for k, v in found.items() if k.startswith("type.")}) == 12


def test_floats_of_eight_bits():
    found = read_pytorch_bin(FILES / "float8.bin")
    assert {v.dtype for v in found.values()} == {mx.bfloat16, mx.float16, mx.float32}
    assert found["float8_e4m3fn"].tolist() == [-448, -0.001953125, 0, 1.125, 15]
    assert found["float8_e5m2"].tolist() == [-57344, -(2**-16), 0, 1.25, 14]
    assert found["float8_e8m0fnu"].tolist() == [2**-127, 0.5, 1, 2, 2**127]


def test_order_of_names():
    assert next(iter(read_pytorch_bin(FILES / "zip.bin"))) == "type.float64"


def test_shared_checkpoint():
    if not SHARED.exists():
        pytest.skip("the shared checkpoints are not on this machine")
    expected = mx.load(str(SHARED / "tiny-s2t" / "model.safetensors"))
    found = read_pytorch_bin(SHARED / "tiny-s2t-bin" / "pytorch_model.bin")
    # torch.save writes a tied head, safetensors does not
    expected["lm_head.weight"] = expected["model.decoder.embed_tokens.weight"]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert mx.array_equal(found[key], value).item(), key


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i8", "i2"])
def test_big_endian(tmp_path, dtype):
    kinds = {"f4": "Float", "f2": "Half", "f8": "Double", "i8": "Long", "i2": "Short"}
    values = np.array([1, -2, 300, 0], dtype)
    stored = storage("0", 4, kind=f"{kinds[dtype]}Storage")
    body = pickled(mapping({"a": tensor(stored, 0, [4], [1])}))
    swapped = {"0": values.astype(f">{dtype}").tobytes()}
    path = write_zip(tmp_path / "a.bin", body, swapped, byteorder="big")
    assert read_pytorch_bin(path)["a"].tolist() == [1, -2, 300, 0]
    write_zip(path, body, {"0": values.tobytes()})
    assert read_pytorch_bin(path)["a"].tolist() == [1, -2, 300, 0]
    write_zip(path, body, swapped, byteorder="middle")
    assert "b'middle' is unknown" in error_of(path)


def test_big_endian_bfloat16(tmp_path):
    stored = storage("0", 2, kind="BFloat16Storage")
    body = pickled(mapping({"a": tensor(stored, 0, [2], [1])}))
    path = write_zip(tmp_path / "a.bin", body, {"0": b"\x3f\x80\xc0\x00"}, byteorder="big")
    assert read_pytorch_bin(path)["a"].tolist() == [1, -2]


def test_views_of_legacy_storages(tmp_path):
    """Before torch 0.4 a persistent id could name a part of another storage."""
    view = storage("0", 4, several(text("1"), number(1), number(3)))
    whole = tensor(four("legacy"), 0, [4], [1])
    body = pickled(mapping({"whole": whole, "view": tensor(view, 1, [2], [1])}))
    path = write_legacy(tmp_path / "a.bin", body, {"0": (4, FOUR)})
    found = read_pytorch_bin(path)
    assert found["whole"].tolist() == [0, 1, 2, 3]
    assert found["view"].tolist() == [2, 3]
    body = pickled(mapping({"view": tensor(view, 1, [3], [1])}))
    assert "past the end" in error_of(write_legacy(path, body, {"0": (4, FOUR)}))
    view = storage("0", 4, several(text("1"), number(2), number(3)))
    body = pickled(mapping({"view": tensor(view, 0, [3], [1])}))
    assert "names no storage" in error_of(write_legacy(path, body, {"0": (4, FOUR)}))


def test_any_byte_but_zero_is_true(tmp_path):
    stored = storage("0", 4, kind="BoolStorage")
    body = pickled(mapping({"a": tensor(stored, 0, [4], [1])}))
    path = write_zip(tmp_path / "a.bin", body, {"0": b"\0\1\2\xff"})
    assert read_pytorch_bin(path)["a"].astype(mx.int32).tolist() == [0, 1, 1, 1]


def test_path_may_be_text(tmp_path):
    assert read_pytorch_bin(str(FILES / "zip.bin")).keys()
    with pytest.raises(CheckpointError, match=r"none\.bin is missing; download it again"):
        read_pytorch_bin(str(tmp_path / "none.bin"))


# Memory


@FORMATS
def test_shared_storages_share_memory(tmp_path, kind):
    count = 1 << 20
    mark = [pickle.NONE] if kind == "legacy" else []
    whole = tensor(storage("0", count, *mark), 0, [count], [1])
    turned = tensor(storage("0", count, *mark), 0, [1024, 1024], [1, 1024])
    body = pickled(mapping({"a": whole, "b": whole, "c": turned}))
    data = bytes(4 * count)
    path = tmp_path / "a.bin"
    if kind == "zip":
        write_zip(path, body, {"0": data})
    else:
        write_legacy(path, body, {"0": (count, data)})
    before = mx.get_active_memory()
    found = read_pytorch_bin(path)
    mx.eval(found)
    assert mx.get_active_memory() - before < 4.1 * count


def test_peak_memory(tmp_path):
    """Little more than the weights: never the file beside them."""
    weights = {f"layer.{n}": mx.random.normal((1 << 20,)) for n in range(24)}
    save_pytorch_bin(tmp_path / "a.bin", weights)
    script = (
        "import resource, sys, mlx.core as mx\n"
        "from mlx_speech.checkpoint.pytorch import read_pytorch_bin\n"
        "mx.eval(mx.zeros(10))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "weights = read_pytorch_bin(sys.argv[1])\n"
        "mx.eval(weights)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        # the shell between: a process starts with the peak of the one that started it
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", script, tmp_path / "a.bin"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    peak = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    size = (tmp_path / "a.bin").stat().st_size
    assert 0.9 * size < peak < 1.2 * size


# What is not a flat dict of plain tensors


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nested", "'model' holds a dict of 1 entries"),
        ("list", "holds a list of 1 entries"),
        ("number_keys", "a dict has a number for a key"),
        ("sparse", "'torch._utils._rebuild_sparse_tensor'"),
        ("quantized", "'torch._utils._rebuild_qtensor'"),
        ("complex", "'torch.ComplexFloatStorage'"),
        ("module", "'torch.nn.modules.linear.Identity'"),
    ],
)
def test_other_contents(name, said):
    assert said in error_of(FILES / f"refused_{name}.bin")


def test_tensors_with_bits_of_their_own(tmp_path):
    """Of a conjugated or negated tensor the storage holds other values than the tensor."""
    bits = pickle.EMPTY_DICT + text("neg") + pickle.NEWTRUE + pickle.SETITEM
    place = (number(0), numbers([4]), numbers([1]), pickle.NEWFALSE, pickle.NONE)
    path = tmp_path / "a.bin"
    for name, *dtype in (("_rebuild_tensor_v2",), ("_rebuild_tensor_v3", FLOAT)):
        for metadata in (bits, pickle.EMPTY_DICT, pickle.NONE):
            arguments = several(four("zip"), *place, *dtype, metadata)
            value = named("torch._utils", name) + arguments + pickle.REDUCE
            write("zip", path, pickled(mapping({"a": value})))
            if metadata == bits:
                assert "a conjugated or negated tensor" in error_of(path)
            else:
                assert read_pytorch_bin(path)["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a PyTorch checkpoint"),
        (b"P", "not a PyTorch checkpoint"),
        (b"PK\3\4", "truncated or damaged zip"),
        (pickle.dumps({"a": 1}, 2), "not a PyTorch checkpoint"),
        (pickle.dumps([1.5, None], 2), "not a PyTorch checkpoint"),
        (bytes(257) + b"ustar" + bytes(250), "tar format of torch before 0.2"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1000, 2), "protocol 1001"),
    ],
)
def test_other_files(tmp_path, content, said):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert said in error_of(path)


def test_unreadable(tmp_path):
    (tmp_path / "a.bin").mkdir()
    assert "cannot be read: Is a directory" in error_of(tmp_path / "a.bin")


def test_other_zips(tmp_path):
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    assert "no data.pkl" in error_of(path)
    body = pickled(mapping({"a": tensor(four("zip"), 0, [4], [1])}))
    write_zip(path, body, {"0": FOUR}, compression=zipfile.ZIP_DEFLATED)
    assert "'data.pkl' in the zip is compressed" in error_of(path)
    write_zip(path, body, {"0": FOUR})
    encrypted = bytearray(path.read_bytes())
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(encrypted)
    assert "'data.pkl' in the zip is encrypted" in error_of(path)
    write_zip(path, body, {"0": FOUR})
    damaged = bytearray(path.read_bytes())
    damaged[damaged.rindex(b"PK\3\4") + 2] = 0
    path.write_bytes(damaged)
    assert "truncated or damaged zip" in error_of(path)
    write_zip(path, body, {})
    assert "the storage of 'a' is missing" in error_of(path)
    write_zip(path, body, {"0": FOUR[:-1]})
    assert "'data/0' in the zip has another size" in error_of(path)


def test_other_legacy_files(tmp_path):
    path = tmp_path / "a.bin"
    body = pickled(mapping({"a": tensor(four("legacy"), 0, [4], [1])}))
    write_legacy(path, body, {"0": (3, FOUR)})
    assert "storage '0' has another size" in error_of(path)
    write_legacy(path, body, {})
    assert "the storage of 'a' is missing" in error_of(path)
    write_legacy(path, body, {"1": (4, FOUR)})
    assert "list of storages is damaged" in error_of(path)


@FORMATS
@pytest.mark.parametrize(
    ("offset", "size", "stride", "said"),
    [
        (0, [5], [1], "past the end"),
        (1, [4], [1], "past the end"),
        (4, [], [], "past the end"),
        (0, [2, 2], [3, 1], "past the end"),
        (0, [2], [2**62], "past the end"),
        (2**64, [1], [1], "past the end"),
        (0, [4], [-1], "impossible"),
        (-1, [1], [1], "impossible"),
        (0, [-1], [1], "impossible"),
        (0, [4], [1, 1], "impossible"),
        (0, [2**31], [0], "impossible"),
        (0, [2**16, 2**16], [0, 0], "impossible"),
        (0, [2**31, 0], [0, 0], "impossible"),
        (0, [1] * 65, [1] * 65, "impossible"),
    ],
)
def test_bounds(tmp_path, kind, offset, size, stride, said):
    body = pickled(mapping({"a": tensor(four(kind), offset, size, stride)}))
    assert said in error_of(write(kind, tmp_path / "a.bin", body))


@FORMATS
@pytest.mark.parametrize(
    ("offset", "size", "stride", "values"),
    [
        (3, [], [], 3),
        (0, [2, 2], [2, 1], [[0, 1], [2, 3]]),
        (1, [2, 2], [0, 2], [[1, 3], [1, 3]]),
        (2, [1, 2], [2**70, 1], [[2, 3]]),
        (9, [0], [1], []),
    ],
)
def test_within_bounds(tmp_path, kind, offset, size, stride, values):
    body = pickled(mapping({"a": tensor(four(kind), offset, size, stride)}))
    found = read_pytorch_bin(write(kind, tmp_path / "a.bin", body))["a"]
    assert found.shape == tuple(size)
    assert found.tolist() == values


@pytest.mark.parametrize("value", [pickle.BINFLOAT + struct.pack(">d", 2), pickle.NEWTRUE])
@pytest.mark.parametrize("field", [0, 1, 2])
def test_places_are_whole_numbers(tmp_path, value, field):
    place = [number(1), several(number(1)), several(number(1))]
    place[field] = value if field == 0 else several(value)
    rebuild = named("torch._utils", "_rebuild_tensor") + several(four("zip"), *place)
    body = pickled(mapping({"a": rebuild + pickle.REDUCE}))
    assert "impossible" in error_of(write("zip", tmp_path / "a.bin", body))


def test_view_between_two_elements(tmp_path):
    untyped = named("torch.storage", "UntypedStorage")
    view = several(text("1"), number(1), number(4))
    stored = several(text("storage"), untyped, text("0"), text("cpu"), number(16), view)
    place = (number(0), numbers([2]), numbers([1]), pickle.NEWFALSE, pickle.NONE)
    arguments = several(stored + pickle.BINPERSID, *place, named("torch", "uint16"))
    value = named("torch._utils", "_rebuild_tensor_v3") + arguments + pickle.REDUCE
    path = write_legacy(tmp_path / "a.bin", pickled(mapping({"a": value})), {"0": (16, FOUR)})
    assert "impossible" in error_of(path)


def test_storage_too_large_for_an_array(tmp_path):
    count = 2**31
    stored = storage("0", count, pickle.NONE, kind="ByteStorage")
    body = pickled(mapping({"a": tensor(stored, 0, [4], [1])}))
    path = write_legacy(tmp_path / "a.bin", body, {"0": (count, b"")})
    os.truncate(path, path.stat().st_size + count)  # takes no room on the disk
    assert f"a storage of {count} elements is more than" in error_of(path)


@FORMATS
def test_two_sizes_of_one_storage(tmp_path, kind):
    items = {
        "a": tensor(four(kind), 0, [4], [1]),
        "b": tensor(four(kind, count=400), 0, [400], [1]),
    }
    path = write(kind, tmp_path / "a.bin", pickled(mapping(items)))
    assert "declared in two ways" in error_of(path)


# Damage


@pytest.mark.parametrize("name", WRITTEN_BY_TORCH)
def test_truncated(tmp_path, name):
    whole, path = (FILES / name).read_bytes(), tmp_path / "a.bin"
    for size in {*range(0, len(whole), 5), *range(300), *range(len(whole) - 300, len(whole))}:
        path.write_bytes(whole[:size])
        message = error_of(path)
        if size > 2:
            assert "download it again" in message


@pytest.mark.parametrize("name", WRITTEN_BY_TORCH)
def test_flipped_bytes(tmp_path, name):
    """A damaged file is refused or gives arrays; it costs no more memory than a whole one."""
    whole, path = (FILES / name).read_bytes(), tmp_path / "a.bin"
    chance = random.Random(name)
    outcomes = {"refused": 0, "read": 0}
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            damaged[chance.randrange(len(whole))] = chance.choice(
                (0, 1, 127, 128, 255, chance.randrange(256))
            )
        path.write_bytes(damaged)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        try:
            found = read_pytorch_bin(path)
        except CheckpointError as error:
            message = str(error)
            outcomes["refused"] += 1
        else:
            mx.eval(found)
            assert all(isinstance(value, mx.array) for value in found.values())
            message = str(path)
            outcomes["read"] += 1
            del found
        assert message.startswith(str(path))
        assert "\n" not in message
        assert mx.get_peak_memory() - before < 20 * len(whole)
    assert min(outcomes.values()) > 50, outcomes
