"""Damaged files of conversations: some hundred mutants of sound ones, as a disk, an editor or
somebody else may make them."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_speech import ChatSession, CheckpointError, MlxSpeechError
from mlx_speech.generation import prompt_cache

CACHES = (
    {},
    {"max_kv_size": 64},
    {"kv_bits": 8, "kv_group_size": 32},
    {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 1000},
)
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, -(2**70), 0.5, 1e300, float("nan")),
    *("", "x", "0", "\ud800", [], {}, [1], [[]], {"a": 1}, [None], ["a"], [{}]),
    *([{"role": "user"}], [{"role": 5, "content": 6}], [{"role": "user", "content": ["x"]}]),
    *([-1] * 3, [10**9] * 3, [2**40], list(range(5))),
]
DTYPES = (mx.float16, mx.bfloat16, mx.int32, mx.uint8, mx.uint32, mx.complex64, mx.bool_)


def parts(data: bytes) -> tuple[dict, bytes]:
    """Header of a safetensors file, and what is behind it."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def joined(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + rest


def places(data: Any) -> list[tuple]:
    """(container, key) of everything in JSON data."""
    keys = data.keys() if isinstance(data, dict) else range(len(data))
    inner = [data[key] for key in keys if isinstance(data[key], dict | list)]
    return [(data, key) for key in keys] + [place for each in inner for place in places(each)]


def mutated_json(data: Any, choose: random.Random) -> Any:
    data = copy.deepcopy(data)
    container, key = choose.choice(places(data) or [([data], 0)])
    value = container[key]
    if choose.random() < 0.25:
        del container[key]
    elif isinstance(value, int) and choose.random() < 0.3:
        container[key] = value + choose.choice((-100, -1, 1, 100))
    else:
        container[key] = choose.choice(VALUES)
    return data


def mutated_arrays(arrays: dict[str, mx.array], choose: random.Random) -> None:
    one, axis, dtype = choose.choice(sorted(arrays)), choose.randrange(4), choose.choice(DTYPES)
    alike = [name for name in arrays if name.endswith(one[1:])]
    names = choose.choice(([one], alike, sorted(arrays)))
    change = choose.choice(
        [
            lambda array: array.astype(dtype),
            lambda array: mx.concatenate([array, array], axis),
            lambda array: array[..., : array.shape[-1] // 2],
            lambda array: array[:, : array.shape[1] // 2],
            lambda array: array.swapaxes(1, axis),
            lambda array: array.reshape(-1),
            lambda array: mx.zeros((0,) * 4, array.dtype),
            lambda array: mx.array(1.0),
        ]
    )
    drop, rename = choose.random() < 0.1, choose.random() < 0.1
    for name in names:
        array = arrays.pop(name)
        if not drop:
            arrays[name + "0" * rename] = array if rename else change(array)


def mutant(data: bytes, folder: Path, choose: random.Random) -> bytes:
    header, rest = parts(data)
    told = json.loads(header["__metadata__"]["prompt_cache"])
    kind = choose.choice(("bits", "cut", "inserted", "header", "told", "said", "arrays", "arrays"))
    if kind == "bits":
        flipped = bytearray(data)
        end = choose.choice((len(data), len(data) - len(rest)))
        for _ in range(choose.choice((1, 4))):
            flipped[choose.randrange(end)] ^= 1 << choose.randrange(8)
        return bytes(flipped)
    if kind in ("cut", "inserted"):
        at = choose.randrange(len(data))
        return data[:at] + (choose.randbytes(4) + data[at:] if kind == "inserted" else b"")
    if kind == "header":
        return joined(mutated_json(header, choose), rest)
    if kind == "said":
        name = choose.choice(sorted(told["metadata"]))
        said = json.dumps(mutated_json(json.loads(told["metadata"][name]), choose))
        odd = ("", "[", "[" * 100_000, "9" * 5000, said, said, said, said)
        told["metadata"][name] = choose.choice(odd)
    if kind == "told":
        told = mutated_json(told, choose)
    metadata = {"prompt_cache": json.dumps(told)}
    if kind != "arrays":
        return joined({**header, "__metadata__": metadata}, rest)
    source, target = folder / "source.safetensors", folder / "target.safetensors"
    source.write_bytes(data)
    arrays = mx.load(str(source))
    mx.eval(arrays)
    mutated_arrays(arrays, choose)
    mx.save_safetensors(str(target), arrays, metadata)
    return target.read_bytes()


def test_mutants(tiny, tmp_path, monkeypatch):
    """Each is refused in our words, or the conversation goes on from it and can be saved again;
    and what is refused leaves the conversation as it was."""
    sound = []
    for options in CACHES:
        session = ChatSession(*tiny, max_new_tokens=2, **options)
        session.send("repeat: hello")
        session.save(tmp_path / "sound")
        sound.append((tmp_path / "sound").read_bytes())
    # of the one model that there is, and slow
    known = prompt_cache.fingerprint(tiny[0])
    monkeypatch.setattr(prompt_cache, "fingerprint", lambda model: known)
    choose, outcomes = random.Random(1), Counter()
    for _ in range(400):
        (tmp_path / "mutant").write_bytes(mutant(choose.choice(sound), tmp_path, choose))
        session = ChatSession(*tiny, max_new_tokens=2)
        try:
            session.load(tmp_path / "mutant")
        except CheckpointError:
            outcomes["refused"] += 1
            assert (session.messages, session._cache.keys, session._cache.length) == ([], [], 0)
            continue
        try:
            session.send("good night")
            session.save(tmp_path / "again")
            outcomes["went on"] += 1
        except MlxSpeechError:  # a template has its own idea of what messages are
            outcomes["messages refused"] += 1
    assert outcomes["refused"] > 250
    assert outcomes["went on"] > 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": "[5]"}, "not a whole conversation"),
        ({"messages": "["}, "not a whole conversation"),
        ({"ids": "[-1]"}, "not a whole conversation"),
        ({"ids": "[1000000]"}, "not a whole conversation"),
        ({"ids": json.dumps([1] * 500)}, "not a whole conversation"),
        ({"ids": 5}, "not a prompt cache"),
        ({}, "of no conversation"),
    ],
    ids=str,
)
def test_what_was_said(tiny, tmp_path, change, message):
    session = ChatSession(*tiny, max_new_tokens=2)
    session.send("repeat: hello")
    session.save(tmp_path / "saved")
    header, rest = parts((tmp_path / "saved").read_bytes())
    told = json.loads(header["__metadata__"]["prompt_cache"])
    told["metadata"] = {**told["metadata"], **change} if change else {}
    header["__metadata__"]["prompt_cache"] = json.dumps(told)
    (tmp_path / "saved").write_bytes(joined(header, rest))
    with pytest.raises(CheckpointError, match=message):
        session.load(tmp_path / "saved")
