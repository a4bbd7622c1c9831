"""What tells versions apart, and files without reading all of them: whether ranks work with the
same."""

import hashlib
import os
import stat
from importlib.metadata import version
from pathlib import Path

from .. import __version__

_WHOLE_BYTES = 1 << 20  # files that are no larger are read whole
_END_BYTES = 1 << 16  # of larger ones, at their beginning and end


def version_facts() -> dict[str, str]:
    """What has to be the same on all ranks, see `Group.check_same`: versions."""
    return {"mlx_speech": __version__, "mlx": version("mlx")}


def digest(path: str | os.PathLike) -> str | None:
    """Twelve letters that tell a file from others: of its size and, where it is large, of its
    beginning and end. None: there is none, or it cannot be read; what is no file is not read."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "no file"
        with open(path, "rb") as file:
            known = hashlib.sha256(str(status.st_size).encode())
            if status.st_size <= _WHOLE_BYTES:
                known.update(file.read())
            else:
                known.update(file.read(_END_BYTES))
                file.seek(-_END_BYTES, os.SEEK_END)
                known.update(file.read())
    except (OSError, ValueError):  # ValueError: no path at all
        return None
    return known.hexdigest()[:12]


def folder_digests(folder: Path, names: list[str]) -> dict[str, str]:
    """Of those of some files in a folder that are there."""
    found = {name: digest(folder / name) for name in names}
    return {name: known for name, known in found.items() if known is not None}
