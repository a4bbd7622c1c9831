"""The JSON files of processors: their values, in the types that they have to have."""

from pathlib import Path
from typing import Any

from ..checkpoint.folder import read_json
from ..errors import CheckpointError, InputError
from ..fields import fit_items


def read_settings(folder: Path, name: str, kind: type) -> dict[str, Any]:
    """A file of a checkpoint folder; an absent one reads as `{}`.

    Args:
        kind: a TypedDict of the values that are to be checked.

    Raises:
        CheckpointError: it is not a JSON object, or one of the values is of another type or out of
            its range.
    """
    return fit_settings(kind, read_json(folder, name, required=False), f"{folder / name}: ")


def fit_settings(kind: type, settings: dict[str, Any], place: str) -> dict[str, Any]:
    """As `fit_items`, for what stands in a file, which `place` says.

    Raises:
        CheckpointError: a value is of another type, or out of its range.
    """
    try:
        return fit_items(kind, settings, place)
    except InputError as error:  # its names are the file's, not options that a user gave
        raise CheckpointError(str(error)) from None
