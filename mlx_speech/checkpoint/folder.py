"""The files of a checkpoint folder: which there are, and the JSON among them."""

import json
import os
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CheckpointError

#: what configurations and processors are read from
SMALL_FILES = (
    *("*.json", "*.jinja", "additional_chat_templates/*.jinja"),
    *("*.model", "*vocab*.txt", "*merges*.txt"),
)
#: what macOS puts beside files on other file systems: part of no checkpoint
APPLE_DOUBLE = "._*"
# best first: index of shards, single file, other names for it, end of all names
_WEIGHTS = (
    ("model.safetensors.index.json", "model.safetensors", "model*.safetensors", ".safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin", ".bin"),
)
_LONGEST_NAME_BYTES = 255  # of what a file system can have, and hence of the Hub's
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BPE_HEAD = "out_llm.safetensors"  #: of a speech encoder: CTC labels that are the decoder's tokens
SEPARATE_WEIGHTS = (ADAPTER_WEIGHTS, BPE_HEAD)  #: parts of a model in files of their own
NO_WEIGHTS = "no model.safetensors and no pytorch_model.bin"


def read_json(folder: Path, name: str = "config.json", *, required: bool = True) -> dict[str, Any]:
    """Parse one JSON file of a checkpoint folder; an absent optional one reads as `{}`.

    Raises:
        CheckpointError: the file is missing though required, or is no file with a JSON object.
    """
    path = Path(folder) / name
    if not path.exists():
        if required:
            raise CheckpointError(f"{folder}: no {name} here, so this is not a model folder")
        return {}
    if not path.is_file():
        raise CheckpointError(f"{path}: not a file, but of another kind; remove it")
    try:
        return parse_json(path.read_bytes())
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def parse_json(text: bytes) -> dict[str, Any]:
    """Parse what is to be a JSON object, in UTF-8.

    NaN and infinity, which are not in the standard, are read as what they are: whether a number
    makes sense is for the field to say.

    Raises:
        CheckpointError: it is none, is nested too deeply, or has a name twice in one object.
    """
    try:
        data = json.loads(text.decode(), object_pairs_hook=_object)
    except ValueError as error:
        raise CheckpointError(f"not readable as JSON: {error}") from error
    except RecursionError as error:
        raise CheckpointError("not readable as JSON: nested too deeply") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"expected a JSON object, found {type(data).__name__}")
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} stands twice in one object")
    return found


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write a JSON file as transformers does, for people to read."""
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
    for index, single, pattern, end in _WEIGHTS:
        if (folder / index).is_file():
            return _indexed_files(name, folder / index, end)
        if single in held:
            return [single]
        others = (file for file in held if "/" not in file and fnmatchcase(file, pattern))
        if files := sorted(inside(file, name) for file in others):
            return files
    return []


def _indexed_files(name: str, index: Path, end: str) -> list[str]:
    source = f"{name}: {index.name}"
    try:
        files = parse_json(index.read_bytes()).get("weight_map")
        if (
            not files
            or not isinstance(files, dict)
            or not all(isinstance(file, str) for file in files.values())
        ):
            raise CheckpointError("expected an object whose values are names")
    except (CheckpointError, OSError) as error:
        message = f"is not an index of weights, a weight_map from weight to file ({error})"
        raise CheckpointError(f"{source} {message}") from error
    names = [inside(file, source) for file in sorted(set(files.values()))]
    for file in names:
        if not file.endswith(end):
            raise CheckpointError(f"{source}: {file!r} is not the name of a *{end} file")
    return names


def inside(file: str, source: str) -> str:
    """The same name of a file, which `source` gives, if it can only be one of the same folder.

    Raises:
        CheckpointError: it is the path of some other file, too long, or cannot be shown as it is.
    """
    fits = file.isprintable() and len(file.encode()) <= _LONGEST_NAME_BYTES
    if file in ("", ".", "..") or "/" in file or "\\" in file or not fits:
        raise CheckpointError(f"{source}: {file!r} is not the name of a file in its folder")
    return file


def is_apple_double(name: str) -> bool:
    """Whether a file, by its path in a checkpoint, is one of `APPLE_DOUBLE`."""
    return fnmatchcase(PurePosixPath(name).name, APPLE_DOUBLE)


def printable(name: str) -> str:
    """A name out of a file as it may stand in a message."""
    return name if name.isprintable() else repr(name)
