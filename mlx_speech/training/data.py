"""Data as it lies on disk -> datasets to train on and to validate with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, MlxSpeechError
from .augmentation import SPEEDS
from .batches import RecordingDataset
from .dataset_folders import is_dataset, read_dataset
from .encoded_audio import AudioEncoder, StateCache
from .examples import Example, ExampleMaker, checked_recordings
from .options import FineTuneOptions
from .row_files import SUFFIXES, read_file
from .rows import DataError, Rows, described

#: folder of the cache, in that of the result
CACHE_FOLDER = "cache"
#: what the split to validate with may be called; the first that there is
_VALIDATION = ("valid", "validation", "dev", "test")
_METADATA = "metadata"  #: how `datasets` calls the file in a folder of recordings


class TrainingData(NamedTuple):
    """What a model is fine-tuned on.

    train: to train on.
    valid: to validate with, if there is any.
    left_out: what is wrong with rows that were left out, a line each.
    """

    train: RecordingDataset
    valid: RecordingDataset | None
    left_out: tuple[str, ...]


def load_data(
    data: str | Path,
    model: Any,
    processor: Any,
    options: FineTuneOptions,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingData:
    """Read data, and check all of it: each recording is decoded once, now or by an earlier run.

    Args:
        data: a .jsonl or .csv file to train on; or a folder with `train` and `valid` as such files,
            with recordings and `metadata.csv` or `metadata.jsonl`, or with a data set of the
            `datasets` library, as parquet files or as `save_to_disk` writes it. Columns are those
            of a `Row`, and other names of `rows.AUDIO_COLUMNS` and `rows.TEXT_COLUMNS`.
        model, processor: of Granite Speech.
        progress: called with how many rows are checked, and of how many.

    Raises:
        DataError: rows cannot be used, and are not to be left out, or there are no others.
        InputError: there is no such data.
        UnsupportedOptionError: a library is missing, or the model's CTC head cannot be trained.
    """
    splits = read_splits(Path(data))
    folder = Path(options.adapter_path) / CACHE_FOLDER
    with checked_recordings(folder / f"recordings-{processor.sampling_rate}.json") as checked:
        maker = ExampleMaker(
            model,
            processor,
            max_seq_length=options.max_seq_length,
            letters=options.train_ctc_head,
            checked=checked,
        )
        found, problems = _examples(splits, maker, options.speed_perturbation, progress)
    if problems and not (options.skip_bad and all(found.values())):
        total = sum(len(rows.entries) for rows in splits.values())
        raise DataError.of(problems, total, skipped=options.skip_bad)
    encoder = AudioEncoder(model, processor, StateCache(folder, options.cache_limit))
    encoded = not options.train_ctc_head
    train = RecordingDataset(
        found["train"], encoder, processor, encoded=encoded, masked=options.spec_augment
    )
    valid = None
    if "valid" in found:
        valid = RecordingDataset(found["valid"], encoder, processor, encoded=encoded)
    encoder.claim([*train.cached, *(valid.cached if valid else [])])
    return TrainingData(train, valid, tuple(problems))


def _examples(
    splits: dict[str, Rows],
    maker: ExampleMaker,
    perturbed: bool,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, list[Example]], list[str]]:
    """Those of each split, and what is wrong with other rows; arguments as of `load_data`.

    Args:
        perturbed: whether those to train on are to be slower and faster, too.
    """
    found: dict[str, list[Example]] = {split: [] for split in splits}
    problems = []
    entries = [(split, entry) for split, rows in splits.items() for entry in rows.entries]
    for done, (split, entry) in enumerate(entries, start=1):
        if isinstance(entry, str):
            problems.append(entry)
        else:
            try:
                speeds = SPEEDS if perturbed and split == "train" else (1.0,)
                found[split] += maker(entry, speeds)
            except MlxSpeechError as error:
                problems.append(described(entry.place, error))
        if progress is not None:
            progress(done, len(entries))
    return found, problems


def read_splits(path: Path) -> dict[str, Rows]:
    """Rows to train on, `train`, and those to validate with, `valid`, where there are some.

    Raises:
        InputError: there are none to train on, or the data is in none of the forms that
            `load_data` takes.
        UnsupportedOptionError: a library is missing.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give the file or folder of the data")
    found = _read_folder(path) if path.is_dir() else {"train": _read_single(path)}
    validation = next((name for name in _VALIDATION if name in found), None)
    splits = {"train": found.get("train", Rows())}
    if validation is not None:
        splits["valid"] = found[validation]
    for name, rows in splits.items():
        if not rows.entries:
            raise InputError(f"{path} has no rows in {name}")
    return splits


def _read_single(path: Path) -> Rows:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is not data: that is in .jsonl or .csv files, or folders")
    return read_file(path)


def _read_folder(folder: Path) -> dict[str, Rows]:
    files = {name: _row_file(folder, name) for name in ("train", *_VALIDATION)}
    files = {name: file for name, file in files.items() if file}
    if not files and (file := _row_file(folder, _METADATA)):
        files = {"train": file}
    if not files:
        inner = {name: _row_file(folder / name, _METADATA) for name in ("train", *_VALIDATION)}
        files = {name: file for name, file in inner.items() if file}
    if files:
        return {name: read_file(file) for name, file in files.items() if file}
    if is_dataset(folder):
        return read_dataset(folder)
    raise InputError(
        f"{folder} has no data in it: that is train.jsonl or train.csv, metadata.csv beside "
        "recordings, or a data set of parquet files or as save_to_disk writes it"
    )


def _row_file(folder: Path, name: str) -> Path | None:
    """The file of rows of that name, if there is one."""
    found = [file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise InputError(f"{folder} has both {found[0].name} and {found[1].name}: remove one")
    return found[0] if found else None
