"""What can be wrong with a file: mutations of bytes, texts, JSON, safetensors and pickles.

Each gets the whole file and a random generator, and gives another file and what was done to it.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

Mutated = tuple[bytes, str]

#: integers as headers have them, wrong in size or sign
_INTEGERS = (0, 1, -1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63)
_JSON_NUMBERS = (0, -1, 1, 2, 3, 7, 10**9, 2**31, 2**63, 10**30, 0.5, 1e-300, 1e308)
_NO_NUMBERS = (float("nan"), float("inf"), -float("inf"))
#: regular expressions that take ages, or cannot be read
_PATTERNS = (r"(a+)+$", r"([\w.]+)+,", r"(.*)*q", r"(?:a|a)+,", "(", r"\p{Q}", "a{1000}{1000}")
#: templates that ask for too much time or memory, never end, or cannot be read
_TEMPLATES = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ 'x'.ljust(2 * 10**9) }}",
    "{{ '%2000000000d' % 1 }}",
    "{{ messages * 10**8 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{% macro more() %}{{ more() }}{% endmacro %}{{ more() }}",
    "{% set all = namespace(text='x') %}{% for a in range(99) %}"
    "{% set all.text = all.text + all.text %}{% endfor %}",
    "{{ raise_exception('no\nmore\x1b[31m' * 1000) }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include 'other' %}",
    "{{ messages[10**20] }}",
    "{{ " + "(" * 5000 + " }}",
    "{% if " + "not " * 5000 + "x %}{% endif %}",
    "{{ x.y.z }}{{ missing }}",
    "{% endfor %}",
)
_LONG = "x" * 100_000
_STRINGS = ("", "12", "no\nmore\x1b[31m", "\ud800", "\0", "../../etc/passwd", _LONG, *_PATTERNS)
#: stands for lists within lists, deeper than can be encoded
_DEEP = "<deep>"
_DEPTH = 100_000
_CONTAINERS = (None, True, False, [], {}, [None], [[]], {"": 0}, [0] * 1000, _DEEP)
_FIXED = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
#: what goes with keys of these names, wherever they are
_MEANT: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("Regex", "target_modules", "exclude_modules", "layers_pattern"), _PATTERNS),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), tuple({p: 8} for p in _PATTERNS)),
    "chat_template": _TEMPLATES,
    "padding": ({**_FIXED, "strategy": {"Fixed": 10**9}, "pad_to_multiple_of": None},),
}
_HOSTILE = (_JSON_NUMBERS, _NO_NUMBERS, _STRINGS, _TEMPLATES, _CONTAINERS)


#: what reading a file raises that is none any more
_UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile),
)


def mutate(path: Path, data: bytes, rng: Random) -> Mutated:
    """One to three mutations of a file, of those that go with its ending."""
    ways = (*_BY_ENDING.get(path.suffix, ()) * 4, change_bytes, change_integer)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.choice(ways)
        try:
            data, what = way(data, rng)
        except _UNREADABLE:  # after an earlier mutation
            data, what = change_bytes(data, rng)
        done.append(what)
    return data, "; ".join(done)


# Bytes


def change_bytes(data: bytes, rng: Random) -> Mutated:
    """Bytes flipped, overwritten, inserted, removed or doubled; an end cut off or added."""
    at = _place(data, rng)
    length = rng.choice((1, 2, 4, 16, 200, max(1, len(data) // 4)))
    before, part, after = data[:at], data[at : at + length], data[at + length :]
    how = rng.choice(_HOWS)
    match how:
        case "flipped":
            bit = 1 << rng.randrange(8)
            part = part.translate(bytes(byte ^ bit for byte in range(256)))
        case "overwritten":
            part = rng.randbytes(len(part))
        case "blank":
            part = rng.choice((b"\0", b"\xff")) * len(part)
        case "inserted":
            part = rng.randbytes(length) + part
        case "removed":
            part = b""
        case "doubled":
            part += part
        case "removed, and all behind them":
            part = after = b""
        case "appended":
            after += rng.randbytes(length)
    return before + part + after, f"{length} bytes at {at} {how}"


_HOWS = (
    *("flipped", "overwritten", "blank", "inserted", "removed", "doubled"),
    *("removed, and all behind them", "appended"),
)


def change_integer(data: bytes, rng: Random) -> Mutated:
    """An integer such as headers have, of 2, 4 or 8 bytes of either order."""
    at, form = _place(data, rng), rng.choice("<>") + rng.choice("HIQ")
    written = struct.pack(form, rng.choice(_INTEGERS) % (1 << 8 * struct.calcsize(form)))
    return data[:at] + written + data[at + len(written) :], f"{written.hex()} written at {at}"


def _place(data: bytes, rng: Random) -> int:
    """Where to change something: mostly near the beginning, or near the end, where headers are."""
    near = min(len(data), rng.choice((64, 512, 2048, len(data)))) or 1
    at = rng.randrange(near)
    return at if rng.random() < 0.8 else max(0, len(data) - 1 - at)


# Texts


def change_template(data: bytes, rng: Random) -> Mutated:
    """A template with a bad one in it."""
    text, bad = data.decode(), rng.choice((*_TEMPLATES, *_STRINGS[:6]))
    at = rng.randrange(len(text) + 1)
    return _encoded(text[:at] + bad + text[at:]), f"insert {bad[:60]!r} at {at}"


def replace_template(data: bytes, rng: Random) -> Mutated:
    """A bad template and nothing else."""
    bad = rng.choice((*_TEMPLATES, _LONG))
    return bad.encode(), f"replace all by {bad[:60]!r}"


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


# JSON


def change_json(data: bytes, rng: Random) -> Mutated:
    """A value replaced, a key dropped or renamed, somewhere in it."""
    value = json.loads(data)
    meant = [(holder, key) for holder in _objects(value) for key in holder.keys() & _MEANT.keys()]
    if meant and rng.random() < 0.2:
        holder, key = rng.choice(sorted(meant, key=lambda place: place[1]))
        holder[key] = rng.choice(_MEANT[key])
        return _dumped(value), f"{key} = {_short(holder[key])}"
    value, what = _changed_value(value, rng)
    return _dumped(value), what


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a value, and itself."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _dumped(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False)
    return _encoded(text.replace(f'"{_DEEP}"', "[" * _DEPTH + "]" * _DEPTH))


def _changed_value(value: Any, rng: Random, way: str = "") -> tuple[Any, str]:
    """A copy of `value` with one change, and which."""
    if isinstance(value, str) and value[:1] in ("{", "[") and rng.random() < 0.9:
        inner, what = _changed_value(json.loads(value), rng, f"{way}|")
        return json.dumps(inner), what
    inside = (
        list(value) if isinstance(value, dict) else range(len(value)) if _is_list(value) else ()
    )
    if not inside or rng.random() < 0.1:
        near = (_JSON_NUMBERS, _near(value)) * 3 if type(value) in (int, float) else ()
        bad = rng.choice(rng.choice((*_HOSTILE, *near)))
        return bad, f"{way or 'all'} = {_short(bad)}"
    key = rng.choice(inside)
    changed = value.copy()
    step = f"{way}.{key}" if isinstance(value, dict) else f"{way}[{key}]"
    how = rng.random()
    if how < 0.15:
        del changed[key]
        return changed, f"{step} dropped"
    if how < 0.25 and isinstance(value, dict):
        new = rng.choice((*_STRINGS, *value))
        changed[new] = changed.pop(key)
        return changed, f"{step} renamed {_short(new)}"
    if how < 0.3:
        other = rng.choice(inside)
        changed[key] = value[other]
        return changed, f"{step} = that of {_short(other)}"
    changed[key], what = _changed_value(value[key], rng, step)
    return changed, what


def _near(number: float) -> tuple[float, ...]:
    return number - 1, number + 1, -number, number * 2, number / 2, number // 2


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Safetensors: the length of a header, the header, which is JSON, and values

_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U32", "U8", "BOOL", "F8_E4M3", "F4", "", "X")


def _opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, data[8 + length :]


def _closed(header: Any, values: bytes) -> bytes:
    text = _dumped(header)
    return len(text).to_bytes(8, "little") + text + values


def change_header(data: bytes, rng: Random) -> Mutated:
    header, values = _opened(data)
    header, what = _changed_value(header, rng)
    return _closed(header, values), f"header{what}"


def change_tensor(data: bytes, rng: Random) -> Mutated:
    """Another type, shape or place of a tensor."""
    header, values = _opened(data)
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    field = rng.choice(("dtype", "shape", "data_offsets"))
    if field == "dtype":
        entry[field] = rng.choice(_DTYPES)
    elif field == "shape" and rng.random() < 0.5:
        entry[field] = rng.choice(
            (entry[field][::-1], [1, *entry[field]], [0], [2**31] * 2, [1] * 99)
        )
    else:
        numbers = entry[field] or [0]
        numbers[rng.randrange(len(numbers))] = rng.choice(
            (*_INTEGERS, len(values), len(values) + 1)
        )
        entry[field] = numbers
    return _closed(header, values), f"{name}.{field} = {_short(entry[field])}"


def change_values(data: bytes, rng: Random) -> Mutated:
    """Numbers that are none, infinite, zero or random in a tensor."""
    header, values = _opened(data)
    name = rng.choice([name for name in header if name != "__metadata__"])
    start, end = header[name]["data_offsets"]
    bad = rng.choice((b"\xff\xff", b"\0\0", b"\x80\x7f", b"\0\x7c", rng.randbytes(2)))
    filled = (bad * (end - start))[: end - start]
    return _closed(header, values[:start] + filled + values[end:]), f"{name} filled with {bad!r}"


# Pickles, of which a PyTorch file has one, or several one after the other

_OPERATIONS = [operation.code.encode("latin-1") for operation in pickletools.opcodes]


def change_pickle(data: bytes, rng: Random) -> Mutated:
    """An operation left out, done twice, replaced, or with another argument."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return _changed_pickle(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as read:
            entries = {entry: read.read(entry) for entry in read.namelist()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error):
        return data, "the zip was damaged before"
    written, what = io.BytesIO(), "no pickle in it"
    with zipfile.ZipFile(written, "w") as out:
        for entry, held in entries.items():
            if entry.endswith(".pkl"):
                held, what = _changed_pickle(held, rng)
            out.writestr(entry, held)
    return written.getvalue(), what


def _changed_pickle(data: bytes, rng: Random) -> Mutated:
    places = list(_operations(data))
    start, end, code = rng.choice(places)
    operation = data[start:end]
    how = rng.randrange(6)
    if how == 0:
        new = b""
    elif how == 1:
        new = operation * rng.choice((2, 1000))
    elif how == 2:
        new = rng.choice(_OPERATIONS) + operation[1:]
    elif how == 3 and len(operation) > 1:
        new = change_bytes(operation, rng)[0]
    elif how == 4:
        other = rng.choice(places)
        new = data[other[0] : other[1]]
    else:
        new = operation + rng.choice(_ADDED)
    return data[:start] + new + data[end:], f"{code} at {start} becomes {new[:30]!r}"


#: numbers of every size, a call, and something that grows as it is copied
_ADDED = (
    *(pickle.LONG1 + b"\x09" + n.to_bytes(9, "little", signed=True) for n in _INTEGERS),
    pickle.LONG4 + b"\xff\xff\xff\x7f",
    pickle.BINUNICODE8 + b"\xff" * 7 + b"\x7f",
    pickle.GLOBAL + b"os\nsystem\n" + pickle.BINUNICODE + b"\4\0\0\0true" + pickle.TUPLE1 + b"R",
    pickle.EMPTY_TUPLE + (pickle.DUP + pickle.TUPLE2) * 200,
    pickle.EMPTY_LIST + (pickle.DUP + pickle.APPEND) * 200,
    pickle.MARK * 5000,
)


def _operations(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Start, end and name of each operation of all pickles at the beginning of `data`."""
    file = io.BytesIO(data)
    while True:
        first = file.tell()
        found = []
        try:
            found = [(first + at, code.name) for code, _, at in pickletools.genops(file)]
        except ValueError:  # what follows the pickles
            return
        ends = [*(at for at, _ in found[1:]), file.tell()]
        for (start, name), end in zip(found, ends, strict=True):
            yield start, end, name


_SAFETENSORS = (change_header, change_tensor, change_values)
_BY_ENDING: dict[str, tuple[Callable[[bytes, Random], Mutated], ...]] = {
    ".json": (change_json,),
    ".jinja": (change_template, replace_template),
    ".safetensors": _SAFETENSORS,
    ".bin": (change_pickle,),
}
