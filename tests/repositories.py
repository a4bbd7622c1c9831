"""Files of repositories on the Hub in miniature, and what resolving them says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_speech.checkpoint.hub import resolve_checkpoint
from mlx_speech.errors import HubError

REPO = "owner/model"
SMALL = {
    "config.json": b'{"a": 1}',
    "preprocessor_config.json": b'{"a": 2}',
    "tokenizer.json": b'{"a": 3}',
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "sentencepiece.bpe.model": b"sp",
}
STRAY = {
    "README.md": b"# model",
    "LICENSE.txt": b"MIT",
    "sample.wav": b"RIFF",
    "other.safetensors": b"stray",
    "training_args.bin": b"pickle",
    "tf_model.h5": b"h5",
    "flax_model.msgpack": b"flax",
    "onnx/config.json": b"{}",
    "onnx/model.safetensors": b"onnx",
    "model-old/model.safetensors": b"old",
    "onnx/additional_chat_templates/a.jinja": b"",
    "additional_chat_templates/a/b.jinja": b"",
    "additional_chat_templates/README.md": b"",
    "._model.safetensors": b"of macOS",
    "._tokenizer.json": b"of macOS",
    "additional_chat_templates/._tool_use.jinja": b"of macOS",
}
SINGLE = {"model.safetensors": b"weights"}
SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
BIN = {"pytorch_model.bin": b"pickle"}
BIN_SHARDS = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]


def sharded(index: str, shards: list[str]) -> dict[str, bytes]:
    weight_map = {"a": shards[0], "b": shards[1], "c": shards[0]}
    return {
        index: json.dumps({"weight_map": weight_map}).encode(),
        **{name: name.encode() for name in shards},
    }


SHARDED = sharded("model.safetensors.index.json", SHARDS)
BIN_SHARDED = sharded("pytorch_model.bin.index.json", BIN_SHARDS)
BPE_HEAD = {"out_llm.safetensors": b"head"}
ADAPTER = {"adapter_config.json": b'{"a": 4}', "adapter_model.safetensors": b"lora"}


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def error_of(*args, kind=HubError, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        resolve_checkpoint(*args, **kwargs)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    assert str(args[0]) in message
    if kind is HubError and "run again with" not in message:
        assert caught.value.__cause__ is not None
    return message
