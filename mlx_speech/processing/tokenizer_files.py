"""The files of a tokenizer -> its settings, and an object of the tokenizers library that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ..checkpoint.folder import read_json
from ..errors import CheckpointError
from .sentencepiece_model import read_sentencepiece

JSON_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
#: in the order in which new ones get their ids
SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def read_tokenizer(
    folder: Path, options: dict[str, Any], *, llama: bool = False
) -> tuple[Backend, dict[str, Any]]:
    """What encodes and decodes, from tokenizer.json or else tokenizer.model, and its settings.

    Args:
        options: settings that are to differ from those of the folder.
        llama: whether the tokenizer is known to be Llama 2's; else the settings say it.

    Raises:
        CheckpointError: neither file is there, or a file is malformed.
    """
    try:
        return _read_tokenizer(folder, options, llama)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise CheckpointError(f"{folder}: not a readable tokenizer: {error}") from error


def _read_tokenizer(folder, options, llama):
    config = _read_settings(folder)
    file = folder / JSON_FILE
    from_json = file.is_file()
    if from_json:
        # which says itself what is put around a text; these are for tokenizer.model
        config.pop("add_bos_token", None)
        config.pop("add_eos_token", None)
        llama = llama or str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
        # some of Llama 3 say so, too, but encode bytes as GPT-2's, and the file says all about it
        llama = llama and b'"ByteLevel"' not in file.read_bytes()
    else:
        file = folder / SENTENCEPIECE_FILE
        if not file.is_file():
            raise CheckpointError(f"{folder}: no {JSON_FILE} and no {SENTENCEPIECE_FILE} here")
        llama = True
    if llama:
        config = {**_LLAMA_TOKENS, **config}
    if not from_json and config["bos_token"] is not None:
        config.setdefault("add_bos_token", True)
    config |= options
    if llama:
        data = read_json(folder, JSON_FILE) if from_json else read_sentencepiece(file)
        backend = Backend.from_str(json.dumps(_as_llama(data, config)))
    else:
        backend = Backend.from_file(str(file))
    if backend.padding is not None:
        config.setdefault("pad_token", backend.padding["pad_token"])
    _add_tokens(backend, config)
    return backend, config


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and what older checkpoints keep beside it, in one dictionary."""
    config = read_json(folder, "tokenizer_config.json", required=False)
    if "added_tokens_decoder" not in config:
        config |= read_json(folder, "special_tokens_map.json", required=False)
        special = {content_of(t) for t in (*named_tokens(config).values(), *further_tokens(config))}
        config["added_tokens_decoder"] = {
            token_id: {"content": text, "special": text in special}
            for text, token_id in read_json(folder, "added_tokens.json", required=False).items()
        }
    return config


def named_tokens(config: dict[str, Any]) -> dict[str, str | dict[str, Any]]:
    """The special tokens that have a name: `pad_token`, or a checkpoint's own `audio_token`."""
    named = {name: config.get(name) for name in SPECIAL_TOKENS}
    named |= {name: token for name, token in config.items() if name.endswith("_token")}
    if isinstance(further := config.get("extra_special_tokens"), dict):
        named |= further
    return {name: token for name, token in named.items() if isinstance(token, (str, dict))}


def further_tokens(config: dict[str, Any]) -> list[str | dict[str, Any]]:
    """The special tokens without a name."""
    further = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return [] if isinstance(further, dict) else further


def content_of(token: str | dict[str, Any]) -> str:
    """The text of a token as configurations have it."""
    return token if isinstance(token, str) else token["content"]


def _as_llama(data: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json with the vocabulary of `data` that works as Llama 2's: a space is a letter
    of the word behind it, a text begins with one, and what has no token is spelt in bytes."""
    prefix = config.get("add_prefix_space") in (None, True)
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    # the older way is a space after every special token
    scheme = "always" if config.get("legacy") else "first"
    model = data["model"]
    return {
        "added_tokens": data.get("added_tokens", []),
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": scheme if prefix else "never",
            "split": False,
        },
        "post_processor": data.get("post_processor"),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "vocab": model["vocab"],
            "merges": model["merges"],
            "unk_token": model.get("unk_token"),
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _add_tokens(backend: Backend, config: dict[str, Any]) -> None:
    """Make the configuration's tokens known to the backend, where they are not or differ."""
    decoder = config.get("added_tokens_decoder") or {}
    listed = [_token(token) for _, token in sorted(decoder.items(), key=lambda item: int(item[0]))]
    present = list(backend.get_added_tokens_decoder().values())
    same = {repr(token) for token in present}
    added = [token for token in listed if repr(token) not in same]
    named = [_token(token) for token in named_tokens(config).values()]
    known = {token.content for token in (*present, *added)}
    for token in (*named, *map(_token, further_tokens(config))):
        if token.content not in known:
            added.append(token)
            known.add(token.content)
    names = {token.content for token in named}
    for token in added:
        token.special = token.special or token.content in names
    backend.add_tokens(added)


def _token(token: str | dict[str, Any]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    return AddedToken(**{name: value for name, value in token.items() if name != "__type"})
