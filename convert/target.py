"""The folder that a conversion writes: what may be replaced in its place, and what is said where it
cannot be written."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from mlx_speech import __version__
from mlx_speech.checkpoint.folder import APPLE_DOUBLE, read_json
from mlx_speech.errors import CheckpointError, InputError
from mlx_speech.files import already_exists, check_name, why_no_folder

from .plan import Conversion, size

#: of config.json: that a conversion wrote it, and what else
CONVERTED_BY = "converted_by"
# what a Mac puts into a folder that is looked at, or copied to
_INCIDENTAL = (".DS_Store", APPLE_DOUBLE)
# errors that are never those of reading
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def converted_by(folder: Path) -> dict[str, Any]:
    """What config.json says of who wrote a folder: the version, and all files in it."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = {"config.json", *(file.as_posix() for file in files)}
    return {"mlx_speech": __version__, "files": sorted(names)}


def check_target(target: Path, source: str | os.PathLike, overwrite: bool) -> None:
    """Refuse to write over what should stay, before any work is done for it.

    Args:
        target: folder to write.
        source: what is to be converted: a folder, or a repository.
        overwrite: replace a model that is there.

    Raises:
        InputError: it may not be written.
    """
    check_name(target)
    place = Path(os.path.realpath(target))
    wrong = why_no_folder(target)
    if Path.cwd().is_relative_to(place):
        wrong = "is, or holds, the current folder"
    elif not wrong and Path(os.path.realpath(os.path.expanduser(source))).is_relative_to(place):
        wrong = "is, or holds, the model to be converted"
    if wrong:
        raise InputError.about(f"{{target}} {wrong}; give another {{mlx_path}}", target=target)
    if place.is_dir():
        if os.listdir(place) and not overwrite:
            raise already_exists(target)
        check_replaced(target)


def check_replaced(folder: Path) -> None:
    """Refuse to replace a folder in which there is anything but what a conversion wrote.

    Raises:
        InputError: there is.
    """
    written = _written(folder)
    ours = written | {parent for path in written for parent in path.parents}
    held = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    incidental = {path for path in held if any(map(path.match, _INCIDENTAL))}
    foreign = [str(path) for path in held if path not in ours | incidental]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise InputError.about(
            "{folder} holds what no conversion wrote, and is not replaced: {names}; move that away "
            "or give another {mlx_path}",
            folder=folder,
            names=", ".join(foreign[:3]) + more,
        )


def _written(folder: Path) -> set[PurePath]:
    """What a conversion wrote into a folder; nothing if it is none's."""
    try:
        files = read_json(folder, required=False)[CONVERTED_BY]["files"]
        return {PurePath(file) for file in files}
    except (CheckpointError, KeyError, TypeError):
        return set()


@contextmanager
def writing(target: Path, source: Path | None = None) -> Iterator[None]:
    """Around what reads files of `source` and writes `target`: what fails is about that of them.

    Raises:
        CheckpointError: something failed.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        file = Path(error.filename) if isinstance(error.filename, str) else target
        if error.errno not in _NO_ROOM and source is not None and file.is_relative_to(source):
            raise CheckpointError(f"{file}: cannot be read: {reason}") from error
        message = f"{target}: cannot be written: {reason}; nothing was kept of it"
        raise CheckpointError(message) from error


def check_space(folder: Path, results: list[Conversion]) -> None:
    """Whether results fit on the disk that a folder is on.

    Raises:
        CheckpointError: they do not.
    """
    needed, free = sum(r.plan.after for r in results), shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError.about(
            "{folder}: {needed} are to be written, but {free} are free there; make room, or give "
            "another {mlx_path}",
            folder=results[0].folder,
            needed=size(needed),
            free=size(free),
        )
