"""Caches in files, so that a long prompt is fed only once."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..fields import fit_items, fitted
from ..files import replacing
from ..layers.cache import KVCache, QuantizedKVCache, RotatingKVCache, Size
from .checks import check_generates, is_cache
from .protocols import GenerativeModel

_FORMAT = "mlx_speech prompt cache 2"
_READ_FROM = "_name_or_path"
#: what each kind of cache is made with, beside what is in it, and the types of that
_SETTINGS: dict[type[KVCache], dict[str, Any]] = {
    KVCache: {},
    RotatingKVCache: {"max_size": Size, "keep": Size},
    QuantizedKVCache: {"bits": Literal[4, 8], "group_size": Literal[32, 64, 128], "start": Size},
}


class _Header(TypedDict):
    format: str
    model: str
    kind: str
    settings: dict
    length: Size
    adapted: bool
    metadata: dict


def save_prompt_cache(
    path: str | os.PathLike,
    cache: Sequence[KVCache],
    model: GenerativeModel,
    *,
    metadata: dict[str, str] | None = None,
    overwrite: bool = True,
) -> None:
    """Write a cache to a safetensors file, whole or not at all.

    Args:
        cache: of one prompt, or of several of the same length.
        model: to which it belongs.
        metadata: strings to keep with it.
        overwrite: whether a file that is there may be replaced.

    Raises:
        InputError: the cache is of a padded batch, the file cannot be written, or there is one that
            may not be replaced.
        UnsupportedOptionError: as of `load_prompt_cache`.
    """
    path = _path(path)
    _check_model(model)
    if not cache or not is_cache(cache):
        raise InputError.must_be("cache", cache, "what make_cache returned")
    metadata = {name: fitted(name, text, str) for name, text in (metadata or {}).items()}
    uneven = any(layer.lengths is not None for layer in cache if isinstance(layer, KVCache))
    if uneven or any(layer.padded for layer in cache):
        raise InputError("a cache of prompts of different lengths cannot be saved")
    kind = type(cache[0])
    header = {
        "format": _FORMAT,
        "model": fingerprint(model),
        "kind": kind.__name__,
        "settings": {name: getattr(cache[0], name) for name in _SETTINGS[kind]},
        "length": cache[0].length,
        "adapted": cache[0].adapted,
        "metadata": metadata,
    }
    arrays = {
        f"{number}.{part}": array
        for number, layer in enumerate(cache)
        for part, array in enumerate(layer.stored())
    }
    try:
        with replacing(path, overwrite=overwrite) as temporary, open(temporary, "wb") as file:
            mx.save_safetensors(file, arrays, {"prompt_cache": json.dumps(header)})
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def load_prompt_cache(
    path: str | os.PathLike, model: GenerativeModel
) -> tuple[list[KVCache], dict[str, str]]:
    """Read a cache that `save_prompt_cache` wrote, and its metadata.

    Raises:
        CheckpointError: it is none, is damaged, or belongs to another model.
        InputError: there is no such file, or `path` is no path.
        UnsupportedOptionError: `model` is none that generates, or shares its layers.
    """
    path = _path(path)
    _check_model(model)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        arrays, metadata = mx.load(str(path), format="safetensors", return_metadata=True)
        header = fitted("header", json.loads(metadata["prompt_cache"]), dict)
        header = fit_items(_Header, header)
        if header["format"] != _FORMAT:
            raise CheckpointError(f"{path}: written by another version of this program")
        if header["model"] != fingerprint(model):
            this = f"{model.folder or 'this one'} (other weights, configuration or number type)"
            raise CheckpointError(f"{path}: belongs to another model than {this}")
        cache = _read(arrays, header, model)
        mx.eval([layer.state for layer in cache])  # while the file is as it was checked
        texts = {name: fitted(name, text, str) for name, text in header["metadata"].items()}
        return cache, texts
    except (RuntimeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a prompt cache of this program") from error


def _check_model(model: GenerativeModel) -> None:
    check_generates(model)
    if getattr(model, "sharding_group", None) is not None:
        raise UnsupportedOptionError(
            "a cache is not kept in a file where several processes share the layers of a model: "
            "each has a part of it"
        )


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise InputError.must_be("path", path, "text or a path")
    return Path(path)


def _read(
    arrays: dict[str, mx.array], header: dict[str, Any], model: GenerativeModel
) -> list[KVCache]:
    """The cache of each layer; `ValueError` and the like if they are none that a header names, or
    none that the model could have filled."""
    kind: Any = {kind.__name__: kind for kind in _SETTINGS}[header["kind"]]
    hints, stated = _SETTINGS[kind], header["settings"]
    if stated.keys() != hints.keys():
        raise ValueError(f"settings of another kind: {stated}")
    settings = {name: fitted(name, stated[name], hint) for name, hint in hints.items()}
    length = header["length"]
    cache: list[KVCache] = [kind(**settings) for _ in model.make_cache()]
    cache[0].adapted = header["adapted"]
    parts = len(arrays) // len(cache)
    if parts or length:
        filled = _filled(model, kind, settings, quantized=parts == 6)
        rows = len(arrays["0.0"])
        for number, (layer, like) in enumerate(zip(cache, filled, strict=True)):
            layer.length = length
            layer.state = [arrays.pop(f"{number}.{part}") for part in range(len(like))]
            positions = min(length, layer.max_size or length)
            for part, other in zip(layer.state, like, strict=True):
                shape = (rows, other.shape[1], positions, other.shape[3])
                if part.shape != shape or part.dtype != other.dtype or not part.size:
                    raise ValueError(f"layer {number} holds {part.dtype} {part.shape}")
                if not mx.isfinite(part).all().item():
                    raise ValueError(f"layer {number} holds what are no numbers")
    if arrays:
        raise ValueError(f"{len(arrays)} more arrays")
    return cache


def _filled(
    model: GenerativeModel, kind: Any, settings: dict[str, Any], quantized: bool
) -> list[list[mx.array]]:
    """What the model stores of each layer in a cache of this kind; nothing of it is computed."""
    if kind is QuantizedKVCache:
        settings = {**settings, "start": 0 if quantized else 1}
    cache = [kind(**settings) for _ in model.make_cache()]
    model.prefill(mx.zeros((1, 1), mx.int32), cache)
    return [layer.state for layer in cache]


def fingerprint(model: GenerativeModel) -> str:
    """Tells models apart whose caches do not fit each other: a digest of the configuration, but for
    where it was read from, and of one row of every weight."""
    told = {name: value for name, value in model.config.to_dict().items() if name != _READ_FROM}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name, weight in tree_flatten(model.parameters()):
        row = weight[0] if weight.ndim > 1 else weight
        digest.update(f"{name} {row.dtype} {row.shape}".encode())
        digest.update(memoryview(mx.contiguous(row).view(mx.uint8)))
    return digest.hexdigest()
