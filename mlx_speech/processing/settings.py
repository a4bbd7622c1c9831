"""The JSON files of processors: their values, in the types that they have to have."""

import json
import os
from pathlib import Path
from typing import Any

from ..checkpoint.folder import read_json
from ..checkpoint.saving import Saveable, write_text
from ..errors import CheckpointError, InputError
from ..fields import fit_items


class Settings(Saveable):
    """Base of what is saved as a JSON file, of which a subclass tells the values."""

    def to_dict(self) -> dict[str, Any]:
        """All values that the file has."""
        raise NotImplementedError

    def to_json_string(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write the file, by whatever name.

        Raises:
            CheckpointError: it cannot be written.
        """
        write_text(json_file_path, self.to_json_string())


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
