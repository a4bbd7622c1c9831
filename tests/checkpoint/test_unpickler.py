"""What a pickle of a checkpoint may ask for: tensors and plain containers, and nothing runs."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import zipfile
from pathlib import Path

import pytest
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
    several,
    tensor,
    text,
    write,
)

from mlx_speech.checkpoint.pytorch import read_pytorch_bin


def stack_named(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


GLOBALS = pytest.mark.parametrize(
    "name_global", [named, stack_named], ids=["GLOBAL", "STACK_GLOBAL"]
)


def touch(path: Path) -> bytes:
    return text(f"open({str(path)!r}, 'w').close()")


def evil_pickles(path: Path, name_global) -> dict[str, tuple[str, bytes]]:
    """Pickles that create the file, with the first global that each asks for."""

    def call(module, name, *arguments):
        return name_global(module, name) + several(*arguments) + pickle.REDUCE

    def call_it(function, *arguments):
        return function + several(*arguments) + pickle.REDUCE

    run = call("builtins", "exec", touch(path))
    command = text(f"touch '{path}'")
    module = call("importlib", "import_module", text("os"))
    ordered = call("collections", "OrderedDict")
    return {
        "os.system": ("os.system", call("os", "system", command)),
        "eval": ("builtins.eval", call("builtins", "eval", touch(path))),
        "exec": ("builtins.exec", run),
        "call": (
            "subprocess.call",
            call("subprocess", "call", several(text("touch"), text(str(path)))),
        ),
        "getattr": (
            "builtins.getattr",
            call_it(call("builtins", "getattr", module, text("system")), command),
        ),
        "attrgetter": (
            "operator.attrgetter",
            call_it(call_it(call("operator", "attrgetter", text("system")), module), command),
        ),
        "partial": (
            "functools.partial",
            call_it(call("functools", "partial", name_global("os", "system"), command)),
        ),
        "dotted": (
            "os.path.os.system",
            call_it(name_global("os", "path.os.system"), command),
        ),
        "item": ("builtins.exec", mapping({"a": tensor(four("zip"), 0, [4], [1]), "b": run})),
        "nested": (
            "builtins.exec",
            mapping({"a": pickle.EMPTY_LIST + mapping({"b": run}) + pickle.APPEND}),
        ),
        "argument": ("builtins.exec", call("collections", "OrderedDict", run)),
        "metadata": ("builtins.exec", ordered + mapping({"_metadata": run}) + pickle.BUILD),
        "persistent id": ("builtins.exec", run + pickle.BINPERSID),
        "left on the stack": ("builtins.exec", run + pickle.POP + pickle.EMPTY_DICT),
    }


class CarelessUnpickler(pickle.Unpickler):
    """Python's own, with torch out of its way."""

    def persistent_load(self, identifier):
        return identifier

    def find_class(self, module, name):
        if module.startswith("torch"):
            return lambda *arguments: None
        return super().find_class(module, name)


def in_places(path: Path, evil: bytes) -> list[bytes]:
    """Files with a pickle wherever one is read."""
    genuine = write("legacy", path, pickled(pickle.EMPTY_DICT)).read_bytes()
    parts = [part + pickle.STOP for part in genuine.split(pickle.STOP)[:5]]
    assert b"".join(parts) == genuine[: -len(FOUR) - 8]
    files = [b"".join(parts[:n]) + evil for n in range(5)]
    return [*files, write("legacy", path, evil).read_bytes(), write("zip", path, evil).read_bytes()]


@GLOBALS
@pytest.mark.parametrize("name", evil_pickles(Path("x"), named))
def test_malicious_pickles(tmp_path, name, name_global):
    canary, path = tmp_path / "canary", tmp_path / "a.bin"
    asked, body = evil_pickles(canary, name_global)[name]
    # protocol 4 for names with dots, and without Python 2's names
    evil = pickle.PROTO + b"\4" + body + pickle.STOP
    with contextlib.suppress(TypeError):  # of what comes after
        CarelessUnpickler(io.BytesIO(evil)).load()
    assert canary.exists(), "harmless, so this test would prove nothing"
    canary.unlink()
    for content in in_places(path, evil):
        path.write_bytes(content)
        message = error_of(path)
        assert f"refused: its pickle asks for '{asked}'" in message
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [0, 1])
def test_malicious_pickles_of_old_protocols(tmp_path, protocol):
    """torch.save cannot write them; their operations are unknown, whatever they ask for."""
    canary, path = tmp_path / "canary", tmp_path / "a.bin"
    for operations in (
        f"cos\nsystem\n(S'touch {canary}'\ntR.",
        f"(S'touch {canary}'\nios\nsystem\n.",
        f"(cos\nsystem\nS'touch {canary}'\no.",
    ):
        evil = operations.encode() if protocol == 0 else pickle.PROTO + b"\1" + operations.encode()
        pickle.loads(evil)
        assert canary.exists()
        canary.unlink()
        for content in in_places(path, evil):
            path.write_bytes(content)
            message = error_of(path)
            assert "refused: its pickle" in message or content == evil
        assert not canary.exists()


@FORMATS
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.storage", "_load_from_bytes"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("collections", "Counter"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("collections.OrderedDict", ""),
        ("copyreg", "_reconstructor"),
        ("builtins", "dict"),
        ("", ""),
        ("torch", "FloatStorage\x1b[2J"),
        ("argparse", "Namespace"),
    ],
)
@GLOBALS
def test_other_globals(tmp_path, kind, module, name, name_global):
    body = pickled(mapping({"a": name_global(module, name)}))
    message = error_of(write(kind, tmp_path / "a.bin", body))
    assert f"asks for {f'{module}.{name}'!r}" in message


def test_long_and_strange_global(tmp_path):
    body = pickled(stack_named("a\nb", "x" * 10_000))
    assert "asks for 'a\\nb.xxx" in error_of(write("zip", tmp_path / "a.bin", body))
    body = pickled(several(text("os")) + text("system") + pickle.STACK_GLOBAL)
    assert "its pickle is damaged" in error_of(write("zip", tmp_path / "a.bin", body))


ORDERED = named("collections", "OrderedDict")
MAKE_ORDERED = ORDERED + pickle.EMPTY_TUPLE + pickle.REDUCE


@FORMATS
@pytest.mark.parametrize(
    "state",
    [
        mapping({"__setstate__": ORDERED, "x": pickle.NONE}),
        several(pickle.NONE, mapping({"__setstate__": ORDERED})),
        several(mapping({}), mapping({"__class__": ORDERED})),
        pickle.EMPTY_DICT,
    ],
    ids=["dict", "slots", "both", "empty"],
)
@pytest.mark.parametrize("target", ["class", "function", "size", "tensor", "storage", "list"])
def test_state_of_anything_but_a_dict(tmp_path, kind, target, state):
    what = {
        "class": ORDERED,
        "function": named("torch._utils", "_rebuild_tensor_v2"),
        "size": named("torch", "Size") + several(numbers([4])) + pickle.REDUCE,
        "tensor": tensor(four(kind), 0, [4], [1]),
        "storage": four(kind),
        "list": pickle.EMPTY_LIST,
    }[target]
    body = pickled(mapping({"a": what + state + pickle.BUILD}))
    assert "refused: its pickle sets the state of a" in error_of(
        write(kind, tmp_path / "a.bin", body)
    )


@FORMATS
def test_state_of_a_dict_changes_nothing(tmp_path, kind):
    items = mapping({"a": tensor(four(kind), 0, [4], [1])}).removeprefix(pickle.EMPTY_DICT)
    for method in ("__setstate__", "__class__", "items", "_metadata"):
        body = MAKE_ORDERED + items + mapping({method: ORDERED}) + pickle.BUILD
        found = read_pytorch_bin(write(kind, tmp_path / "a.bin", pickled(body)))
        assert type(found) is dict
        assert found["a"].tolist() == [0, 1, 2, 3]
    body = MAKE_ORDERED + items + several(mapping({}), mapping({"items": ORDERED})) + pickle.BUILD
    assert "sets the state of a dict" in error_of(write(kind, tmp_path / "a.bin", pickled(body)))


FLOATS = named("torch", "FloatStorage")


@FORMATS
@pytest.mark.parametrize(
    "identifier",
    [
        text("0"),
        number(0),
        pickle.NONE,
        pickle.EMPTY_TUPLE,
        several(text("module"), ORDERED, text("source.py"), text("source")),
        several(text("storage"), FLOATS, text("0"), text("cpu")),
        several(text("storage"), text("FloatStorage"), text("0"), text("cpu"), number(4)),
        several(text("storage"), ORDERED, text("0"), text("cpu"), number(4)),
        several(text("storage"), FLOATS, number(0), text("cpu"), number(4)),
        several(text("storage"), FLOATS, text("0"), text("cpu"), text("4")),
        several(text("storage"), FLOATS, text("0"), text("cpu"), number(4), text("view")),
        several(text("storage"), FLOATS, text("0"), text("cpu"), number(4), numbers([0, 0, 4])),
        several(text("storage"), FLOATS, text("0"), text("cpu"), number(4), *[pickle.NONE] * 2),
        several(several(text("storage")), FLOATS, text("0"), text("cpu"), number(4)),
    ],
)
def test_persistent_ids(tmp_path, kind, identifier):
    body = pickled(mapping({"a": tensor(identifier + pickle.BINPERSID, 0, [4], [1])}))
    assert "persistent id that names no storage" in error_of(write(kind, tmp_path / "a.bin", body))


def test_negative_storage(tmp_path):
    body = pickled(mapping({"a": tensor(four("zip", count=-4), 0, [0], [1])}))
    assert "declared in two ways" in error_of(write("zip", tmp_path / "a.bin", body))


REBUILD = named("torch._utils", "_rebuild_tensor_v2")
PARAMETER = named("torch._utils", "_rebuild_parameter")
OTHERWISE = "refused: its pickle does something else than describe plain tensors"


@FORMATS
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (text("os") + several(text("x")) + pickle.REDUCE, OTHERWISE),
        (FLOATS + several(number(4)) + pickle.REDUCE, OTHERWISE),
        (ORDERED + several(pickle.EMPTY_LIST) + pickle.REDUCE, OTHERWISE),
        (REBUILD + pickle.EMPTY_TUPLE + pickle.REDUCE, OTHERWISE),
        (REBUILD + several(*[text("x")] * 6) + pickle.REDUCE, OTHERWISE),
        (REBUILD + pickle.NONE + pickle.REDUCE, OTHERWISE),
        (PARAMETER + several(*[text("x")] * 3) + pickle.REDUCE, OTHERWISE),
        (tensor(pickle.NONE, 0, [4], [1]), OTHERWISE),
        (named("torch", "Size") + several(text("x")) + pickle.REDUCE, OTHERWISE),
        (text("x") + pickle.NONE + pickle.APPEND, OTHERWISE),
        (ORDERED + pickle.MARK + pickle.NONE + pickle.APPENDS, OTHERWISE),
        (pickle.EMPTY_LIST + text("x") + pickle.NONE + pickle.SETITEM, OTHERWISE),
        (pickle.EMPTY_LIST + number(0) + pickle.NONE + pickle.SETITEM, OTHERWISE),
        (ORDERED + text("x") + pickle.NONE + pickle.SETITEM, OTHERWISE),
        (pickle.EMPTY_DICT + pickle.MARK + text("x") + pickle.SETITEMS, "pickle is damaged"),
        (pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.NONE + pickle.SETITEM, "a list of 0 entr"),
        (ORDERED + pickle.EMPTY_TUPLE + pickle.NEWOBJ, "operation b'\\x81'"),
        (pickle.EXT1 + b"\1", "operation b'\\x82'"),
        (pickle.BINBYTES + b"\1\0\0\0x", "operation b'B'"),
        (pickle.BYTEARRAY8 + b"\xff" * 8, "operation b'\\x96'"),
        (pickle.EMPTY_SET, "operation b'\\x8f'"),
        (pickle.BINGET + b"\7", "pickle is damaged"),
        (pickle.TUPLE, "pickle is damaged"),
        (pickle.REDUCE, "pickle is damaged"),
        (pickle.TUPLE3, "pickle is damaged"),
        (pickle.BINPUT + b"\0", "pickle is damaged"),
        (pickle.STOP, "pickle is damaged"),
        (pickle.BUILD, "pickle is damaged"),
        (pickle.GLOBAL + b"torch", "download it again"),
        (pickle.SHORT_BINUNICODE + b"\1\xff", "pickle is damaged"),
        (pickle.BINUNICODE + b"\xff" * 4, "download it again"),
        (pickle.LONG1 + b"\xff", "download it again"),
    ],
)
def test_operations_out_of_place(tmp_path, kind, body, said):
    assert said in error_of(write(kind, tmp_path / "a.bin", pickled(body)))


@FORMATS
def test_bombs(tmp_path, kind):
    """Small files that would take for ever, or all memory, where one is careless."""
    path = tmp_path / "a.bin"
    deep = pickle.EMPTY_TUPLE + pickle.TUPLE1 * 200_000
    # 2 to the power of 99 entries, were they hashed or shown
    double = pickle.BINGET + b"\0" + pickle.TUPLE2 + pickle.BINPUT + b"\0"
    wide = pickle.EMPTY_TUPLE + pickle.BINPUT + b"\0" + 99 * double
    for key in (deep, wide):
        body = pickled(pickle.EMPTY_DICT + key + pickle.NONE + pickle.SETITEM)
        assert "a dict has a tuple of" in error_of(write(kind, path, body))
        body = pickled(mapping({"a": tensor(four(kind), 0, [4], [1]), "b": key}))
        assert "'b' holds a tuple of" in error_of(write(kind, path, body))
    itself = pickle.EMPTY_LIST + pickle.BINPUT + b"\0" + pickle.BINGET + b"\0" + pickle.APPEND
    body = pickled(mapping({"a": tensor(four(kind), 0, [4], [1]), "b": itself}))
    assert "'b' holds a list of 1 entries" in error_of(write(kind, path, body))
    value = tensor(four(kind), 0, [4], [1]) + pickle.LONG_BINPUT + b"\xff" * 4
    found = read_pytorch_bin(write(kind, path, pickled(mapping({"a": value}))))
    assert found["a"].tolist() == [0, 1, 2, 3]
    # a number may have 2040 bits
    size = mapping({"a": tensor(four(kind, count=2**2000), 0, [2**2000], [2**2000])})
    assert error_of(write(kind, path, pickled(size)))


def test_storages_that_are_the_same_bytes(tmp_path):
    path, count = tmp_path / "a.bin", 1000
    items = {f"t{n}": tensor(four("zip", str(n), count), 0, [count], [1]) for n in range(3)}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(mapping(items)))
        archive.writestr("archive/data/0", bytes(4 * count))
        for name in ("archive/data/1", "archive/data/2"):
            again = copy.copy(archive.getinfo("archive/data/0"))
            again.filename = name
            archive.filelist.append(again)
    assert "larger than the file" in error_of(path)
