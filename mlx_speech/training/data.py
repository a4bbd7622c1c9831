"""Data as it lies on disk -> datasets to train on and to validate with."""

from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, MlxSpeechError
from .augmentation import SPEEDS
from .batches import RecordingDataset
from .dataset_folders import is_dataset, read_dataset
from .encoded_audio import AudioEncoder, StateCache, model_digest
from .examples import Checked, Example, ExampleMaker, checked_recordings
from .options import FineTuneOptions
from .ranks import Ranks, digest_of
from .row_files import SUFFIXES, read_file
from .rows import DataError, Row, Rows, described

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
    *,
    ranks: Ranks | None = None,
) -> TrainingData:
    """Read data, and check all of it: each recording is decoded once, now or by an earlier run, and
    by one of the ranks.

    Args:
        data: a .jsonl or .csv file to train on; or a folder with `train` and `valid` as such files,
            with recordings and `metadata.csv` or `metadata.jsonl`, or with a data set of the
            `datasets` library, as parquet files or as `save_to_disk` writes it. Columns are those
            of a `Row`, and other names of `rows.AUDIO_COLUMNS` and `rows.TEXT_COLUMNS`.
        model, processor: of Granite Speech.
        progress: called with how many rows are checked, and of how many.
        ranks: that train together; by default those that this process was launched with.

    Raises:
        DistributedError: one is lost, or has other options, another model or other data.
        DataError: rows cannot be used, and are not to be left out, or there are no others.
        InputError: there is no such data.
        UnsupportedOptionError: a library is missing, or the model's CTC head cannot be trained.
    """
    ranks = Ranks.of_launch() if ranks is None else ranks
    ranks.check_options(options)
    splits = read_splits(Path(data))
    if ranks.size > 1:
        rows = [[name, *map(_told, split.entries)] for name, split in splits.items()]
        ranks.check_same({"the model": model_digest(model), "the data": digest_of(rows)})
    folder = Path(options.adapter_path) / CACHE_FOLDER
    file = folder / f"recordings-{processor.sampling_rate}.json"
    with checked_recordings(file, kept=ranks.first) as checked:
        maker = ExampleMaker(
            model,
            processor,
            max_seq_length=options.max_seq_length,
            letters=options.train_ctc_head,
            checked=checked,
        )
        if ranks.size > 1:
            _share_checking(splits, maker, checked, ranks, progress)
            progress = None
        found, problems = _examples(splits, maker, options.speed_perturbation, progress)
    examples = [*map(_identity, chain.from_iterable(found.values()))]
    ranks.check_same({"the data": digest_of([len(problems), *examples])})
    if problems and not (options.skip_bad and all(found.values())):
        total = sum(len(rows.entries) for rows in splits.values())
        raise DataError.of(problems, total, skipped=options.skip_bad)
    encoder = AudioEncoder(model, processor, StateCache(folder, options.cache_limit))
    encoded = not options.train_ctc_head
    shared: dict[str, Any] = {"encoded": encoded, "ranks": ranks, "batch_size": options.batch_size}
    args = encoder, processor
    train = RecordingDataset(found["train"], *args, masked=options.spec_augment, **shared)
    valid = RecordingDataset(found["valid"], *args, **shared) if "valid" in found else None
    encoder.claim([*train.cached, *(valid.cached if valid else [])], ranks)
    return TrainingData(train, valid, tuple(problems))


def _share_checking(
    splits: dict[str, Rows],
    maker: ExampleMaker,
    checked: dict[str, Checked],
    ranks: Ranks,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decode recordings that were never checked, each rank some of them, and tell all of it.

    Args:
        checked: of the maker; what the first rank has in it, and what is found, is put into it.
    """
    checked.update(_as_checked(ranks.broadcast(checked)))
    rows = [row for split in splits.values() for row in split.entries if isinstance(row, Row)]
    for row in ranks.rounds(rows[ranks.rank :: ranks.size], progress):
        with suppress(MlxSpeechError):  # which is told when all rows are looked at
            maker.check_audio(row)
    for found in ranks.gather(checked):
        checked.update(_as_checked(found))


def _as_checked(told: dict[str, Any]) -> dict[str, Checked]:
    return {digest: Checked(*values) for digest, values in told.items()}


def _told(entry: Row | str) -> list[Any]:
    """What a row says, but for where its recording lies."""
    if isinstance(entry, str):
        return [entry]
    return [entry.place, entry.text, entry.prompt, entry.language, entry.punctuate]


def _identity(example: Example) -> list[Any]:
    """What tells an example from others."""
    return [example.digest, example.speed, example.frames, example.prompt_ids, example.target_ids]


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
    check_data(path)
    found = _read_folder(path) if path.is_dir() else {"train": read_file(path)}
    validation = next((name for name in _VALIDATION if name in found), None)
    splits = {"train": found.get("train", Rows())}
    if validation is not None:
        splits["valid"] = found[validation]
    for name, rows in splits.items():
        if not rows.entries:
            raise InputError(f"{path} has no rows in {name}")
    return splits


def check_data(path: Path) -> None:
    """Raises `InputError` for what is no folder, and no file of a kind that `load_data` takes."""
    if not path.exists():
        raise InputError(f"{path} does not exist: give the file or folder of the data")
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is not data: that is in .jsonl or .csv files, or folders")


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
