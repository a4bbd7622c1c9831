"""Rows of data sets in the formats of the `datasets` library: parquet files, or saved to disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, UnsupportedOptionError
from .recordings import StoredAudio
from .rows import AUDIO_COLUMNS, OPTIONAL_COLUMNS, TEXT_COLUMNS, Rows

#: files that `save_to_disk` writes for a data set, and for several splits of one
_SAVED = ("state.json", "dataset_dict.json")


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds such a data set."""
    return _is_saved(folder) or any(folder.rglob("*.parquet"))


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SAVED)


def read_dataset(folder: Path) -> dict[str, Rows]:
    """Rows by the name of their split; `train` where there is only one without a name.

    Raises:
        InputError: it cannot be read, or has no columns that could be used.
        UnsupportedOptionError: the library is not installed.
    """
    return {name: _rows(rows, name, folder) for name, rows in _splits(folder).items()}


def _splits(folder: Path) -> dict[str, Any]:
    try:
        import datasets
    except ImportError:
        message = f"{folder} is a data set that needs the datasets library: install it with "
        raise UnsupportedOptionError(message + "pip install 'mlx-speech[train]'") from None
    import pyarrow

    failures = (OSError, ValueError, datasets.exceptions.DatasetsError, pyarrow.ArrowException)
    with _quiet(datasets):
        try:
            if _is_saved(folder):
                found = datasets.load_from_disk(str(folder))
            else:
                found = datasets.load_dataset(str(folder))
        except failures as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{folder} cannot be read as a data set ({reason})") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Within it, the library writes nothing to standard error."""
    level, hidden = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()


def _rows(dataset: Any, split: str, folder: Path) -> Rows:
    import datasets

    typed = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Audio)]
    for name in typed:  # its own decoder would need torch
        dataset = dataset.cast_column(name, datasets.Audio(decode=False))
    there = dataset.column_names
    audio = [*typed, *(name for name in AUDIO_COLUMNS if name in there)][:1]
    texts = [name for name in TEXT_COLUMNS if name in there]
    for name, found in ((AUDIO_COLUMNS[0], audio), (TEXT_COLUMNS[0], texts)):
        if not found:
            columns = f"{split} has no column {name}, but {', '.join(there)}"
            raise InputError(f"{folder}: {columns}")
    wanted = [*texts, *(name for name in OPTIONAL_COLUMNS if name in there)]
    rows = Rows()
    for number, values in enumerate(dataset.select_columns(wanted)):
        source = StoredAudio(dataset, number, audio[0], folder)
        rows.add(f"{split}[{number}]", {**values, AUDIO_COLUMNS[0]: source}, folder)
    return rows
