"""The folder that training writes: what may lie there before, and what may be replaced."""

from pathlib import Path

from ..checkpoint.card import CARD
from ..checkpoint.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, APPLE_DOUBLE
from ..errors import InputError, first_few
from ..files import HIDDEN, already_exists, check_name, why_no_folder
from .data import CACHE_FOLDER
from .state import STATE_FILE, check_resumable

#: what training writes; the cache stays whatever is trained
_WRITTEN = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, STATE_FILE, CARD)
# what a Mac puts into a folder that is looked at, or copied to; what a killed process left
_INCIDENTAL = (".DS_Store", APPLE_DOUBLE, f"{HIDDEN}*")


def check_target(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse to write over what should stay, before any work is done for it.

    Args:
        resume: go on with the training that is there.
        overwrite: replace it.

    Raises:
        InputError: something is there that stays, or nothing to go on with.
    """
    check_name(folder)
    if wrong := why_no_folder(folder):
        message = "{adapter_path} {folder} {wrong}; give another"
        raise InputError.about(message, option="adapter_path", folder=str(folder), wrong=wrong)
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    held = [n for n in held if n != CACHE_FOLDER and not any(map(Path(n).match, _INCIDENTAL))]
    if resume:
        check_resumable(folder)
    elif STATE_FILE in held:
        if not overwrite:
            error = already_exists(folder)
            raise error.with_hint("{resume} goes on with the training in it")
        foreign = [name for name in held if name not in _WRITTEN]
        if foreign:
            raise _foreign(folder, foreign)
    elif held:
        raise _foreign(folder, held)


def clear_target(folder: Path) -> None:
    """Remove what earlier training left, but for encoded recordings.

    Raises:
        OSError: it cannot be removed.
    """
    for name in _WRITTEN:
        (folder / name).unlink(missing_ok=True)


def _foreign(folder: Path, names: list[str]) -> InputError:
    message = "{folder} holds what no training wrote: {names}; give another {adapter_path}"
    values = {"folder": str(folder), "names": first_few(names)}
    return InputError.about(message, option="adapter_path", **values)
