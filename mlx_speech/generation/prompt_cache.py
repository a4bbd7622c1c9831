"""Caches in files, so that a long prompt is fed only once."""

import hashlib
import json
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import CheckpointError, InputError
from ..files import replacing
from ..layers.cache import KVCache, QuantizedKVCache, RotatingKVCache
from .protocols import GenerativeModel

_FORMAT = "mlx_speech prompt cache 1"
#: what each kind of cache is made with, beside what is in it
_SETTINGS: dict[type[KVCache], tuple[str, ...]] = {
    KVCache: (),
    RotatingKVCache: ("max_size", "keep"),
    QuantizedKVCache: ("bits", "group_size", "start"),
}


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
    """
    if any(layer.padded for layer in cache):
        raise InputError("a cache of prompts of different lengths cannot be saved")
    kind = type(cache[0])
    header = {
        "format": _FORMAT,
        "model": fingerprint(model),
        "kind": kind.__name__,
        "settings": {name: getattr(cache[0], name) for name in _SETTINGS[kind]},
        "length": cache[0].length,
        "metadata": metadata or {},
    }
    arrays = {
        f"{number}.{part}": array
        for number, layer in enumerate(cache)
        for part, array in enumerate(layer.stored())
    }
    try:
        with replacing(Path(path), overwrite=overwrite) as temporary, open(temporary, "wb") as file:
            mx.save_safetensors(file, arrays, {"prompt_cache": json.dumps(header)})
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def load_prompt_cache(
    path: str | os.PathLike, model: GenerativeModel
) -> tuple[list[KVCache], dict[str, str]]:
    """Read a cache that `save_prompt_cache` wrote, and its metadata.

    Raises:
        CheckpointError: it is none, or belongs to another model.
        InputError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        arrays, metadata = mx.load(str(path), format="safetensors", return_metadata=True)
        header = json.loads(metadata["prompt_cache"])
        if header["format"] != _FORMAT:
            raise CheckpointError(f"{path}: written by another version of this program")
        if header["model"] != fingerprint(model):
            this = f"{model.folder or 'this one'} (other weights, configuration or number type)"
            raise CheckpointError(f"{path}: belongs to another model than {this}")
        return _read(arrays, header, len(model.make_cache())), dict(header["metadata"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a prompt cache of this program") from error


def _read(arrays: dict[str, mx.array], header: dict[str, Any], num_layers: int) -> list[KVCache]:
    """The cache of each layer; `ValueError` and the like if they are none that a header names."""
    kind: Any = {kind.__name__: kind for kind in _SETTINGS}[header["kind"]]
    if sorted(header["settings"]) != sorted(_SETTINGS[kind]):
        raise ValueError(f"settings of another kind: {header['settings']}")
    settings = {name: operator.index(value) for name, value in header["settings"].items()}
    length = operator.index(header["length"])
    parts, odd = divmod(len(arrays), num_layers)
    counts = (2, 6) if kind is QuantizedKVCache else (2,)
    if odd or (parts not in counts and (parts or length)):
        raise ValueError(f"{len(arrays)} arrays for {num_layers} layers")
    cache = []
    for number in range(num_layers):
        layer = kind(**settings)
        layer.state = [arrays[f"{number}.{part}"] for part in range(parts)]
        layer.length = length
        stored = min(length, layer.max_size or length)
        if any(part.ndim != 4 or part.shape[2] != stored for part in layer.state):
            raise ValueError(f"layer {number} does not hold {stored} positions")
        cache.append(layer)
    return cache


def fingerprint(model: GenerativeModel) -> str:
    """Tells models apart whose caches do not fit each other: a digest of the configuration and of
    one row of every weight."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, weight in tree_flatten(model.parameters()):
        row = weight[0] if weight.ndim > 1 else weight
        digest.update(f"{name} {row.dtype} {row.shape}".encode())
        digest.update(memoryview(mx.contiguous(row).view(mx.uint8)))
    return digest.hexdigest()
