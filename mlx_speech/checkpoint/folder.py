"""The files of a checkpoint folder: which there are, and the JSON among them."""

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

#: what configurations and processors are read from
SMALL_FILES = (
    *("*.json", "*.jinja", "additional_chat_templates/*.jinja"),
    *("*.model", "*vocab*.txt", "*merges*.txt"),
)
# best first: index of shards, single file, other names for it
_WEIGHTS = (
    ("model.safetensors.index.json", "model.safetensors", "model*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin"),
)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
NO_WEIGHTS = "no model.safetensors and no pytorch_model.bin"


def read_json(folder: Path, name: str = "config.json", *, required: bool = True) -> dict[str, Any]:
    """Parse one JSON file of a checkpoint folder; an absent optional one reads as `{}`.

    Raises:
        CheckpointError: the file is missing though required, or is not a JSON object.
    """
    path = Path(folder) / name
    if not path.is_file():
        if required:
            raise CheckpointError(f"{folder}: no {name} here, so this is not a model folder")
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def weight_files(folder: Path, held: set[str] | None = None, name: str = "") -> list[str]:
    """Name the files of a model's own weights: safetensors wherever there are any, else PyTorch's.

    Args:
        folder: where its indices are.
        held: names of all files that it has; by default those in the folder.
        name: what to call the checkpoint in a message; by default as the folder.

    Returns:
        The names; none if there are no weights.

    Raises:
        CheckpointError: an index is malformed, or names a file outside the folder.
    """
    name = name or str(folder)
    held = {*os.listdir(folder)} if held is None else held
    for index, single, pattern in _WEIGHTS:
        if (folder / index).is_file():
            return _indexed_files(name, folder / index)
        if single in held:
            return [single]
        others = (file for file in held if "/" not in file and fnmatchcase(file, pattern))
        if files := sorted(inside(file, name) for file in others):
            return files
    return []


def _indexed_files(name: str, index: Path) -> list[str]:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({os.fspath(file) for file in files})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{name}: {index.name} is not an index of weights, a weight_map from weight to file "
            f"({type(error).__name__}: {error})"
        ) from error
    return [inside(file, f"{name}: {index.name}") for file in names]


def inside(file: str, source: str) -> str:
    """The same name of a file, which `source` gives, if it can only be one of the same folder.

    Raises:
        CheckpointError: it is the path of some other file, or cannot be shown as it is.
    """
    if file in ("", ".", "..") or "/" in file or "\\" in file or not file.isprintable():
        raise CheckpointError(f"{source}: {file[:200]!r} is not the name of a file in its folder")
    return file


def printable(name: str) -> str:
    """A name out of a file as it may stand in a message."""
    return name if name.isprintable() else repr(name)
