"""Data sets of the `datasets` library, as parquet files and as it saves them."""

from __future__ import annotations

import logging
import shutil
import socket
import sys
from pathlib import Path

import pytest

from mlx_speech import load_audio
from mlx_speech.errors import InputError, UnsupportedOptionError
from mlx_speech.training.data import read_splits
from mlx_speech.training.rows import DataError

from .conftest import AUDIO, NAMES, TEXTS

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Nothing is asked of the network, and what the library caches is of this test."""

    def refuse(*args, **options):
        raise AssertionError(f"a request: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def stored(names=NAMES[:3], texts=None, **columns):
    """A data set with the bytes of recordings."""
    audio = [{"bytes": (AUDIO / name).read_bytes(), "path": name} for name in names]
    texts = [TEXTS[name] for name in names] if texts is None else texts
    made = datasets.Dataset.from_dict({"audio": audio, "text": texts, **columns})
    return made.cast_column("audio", datasets.Audio(decode=False))


def check(tiny, data, capfd) -> None:
    """What was stored is what comes out, and nothing is written on the way."""
    assert [example.row.text for example in data.train.examples] == [TEXTS[n] for n in NAMES[:3]]
    extractor = tiny[1].audio_processor
    for example, name in zip(data.train.examples, NAMES[:3], strict=True):
        samples = load_audio(AUDIO / name)
        assert example.frames == len(extractor.log_mel(samples))
        with example.row.audio.open(16000) as recording:
            assert recording.read().tolist() == samples.tolist()
    assert data.train.audio(0).shape[0] == data.train.examples[0].frames
    assert capfd.readouterr() == ("", "")


class TestForms:
    def test_saved(self, tiny, read, tmp_path, capfd):
        folder = tmp_path / "saved"
        stored().save_to_disk(str(folder))
        capfd.readouterr()
        data = read(folder)
        check(tiny, data, capfd)
        assert data.valid is None

    def test_saved_splits(self, tiny, read, tmp_path, capfd):
        whole = stored()
        splits = datasets.DatasetDict(train=whole, validation=whole.select([1]), test=whole)
        splits.save_to_disk(str(tmp_path / "saved"))
        capfd.readouterr()
        data = read(tmp_path / "saved")
        check(tiny, data, capfd)
        assert [example.row.place for example in data.valid.examples] == ["validation[0]"]

    def test_parquet(self, tiny, read, tmp_path, capfd):
        folder = tmp_path / "parquet" / "data"
        folder.mkdir(parents=True)
        whole = stored()
        whole.select([0, 1]).to_parquet(str(folder / "train-00000-of-00002.parquet"))
        whole.select([2]).to_parquet(str(folder / "train-00001-of-00002.parquet"))
        whole.select([1]).to_parquet(str(folder / "test-00000-of-00001.parquet"))
        capfd.readouterr()
        data = read(folder.parent)
        check(tiny, data, capfd)
        assert [example.row.place for example in data.valid.examples] == ["test[0]"]

    def test_progress_bars_are_as_they_were(self, read, tmp_path):
        stored().save_to_disk(str(tmp_path / "saved"))
        level = datasets.logging.get_verbosity()
        read(tmp_path / "saved")
        assert not datasets.are_progress_bars_disabled()
        assert datasets.logging.get_verbosity() == level


def test_columns(tmp_path):
    """A recording is found by its type, too; its text by the names that there are."""
    made = (
        stored(names=NAMES[:1]).rename_column("audio", "speech").rename_column("text", "sentence")
    )
    made = made.add_column("prompt", ["write"])
    made.save_to_disk(str(tmp_path / "saved"))
    (row,) = read_splits(tmp_path / "saved")["train"].entries
    assert (row.audio.column, row.text, row.prompt) == ("speech", TEXTS[NAMES[0]], "write")


def test_paths_in_place_of_bytes(read, tmp_path):
    folder = tmp_path / "saved"
    paths = ["a.flac", "b.flac", str(AUDIO / NAMES[1])]
    datasets.Dataset.from_dict({"audio": paths, "text": ["x"] * 3}).save_to_disk(str(folder))
    shutil.copy(AUDIO / NAMES[0], folder / "a.flac")
    with pytest.raises(DataError) as caught:
        read(folder)
    missing = f"train[1]: {folder}/b.flac does not exist: check the path"
    assert caught.value.problems == (missing,)
    data = read(folder, skip_bad=True)
    assert [example.frames for example in data.train.examples] == [125, 75]


def test_bad_rows(read, tmp_path):
    made = stored(names=NAMES[:4], texts=["a", None, " ", "d"])
    audio = [*made["audio"][:3], {"bytes": b"no audio at all", "path": None}]
    made = made.remove_columns("audio").add_column("audio", audio)
    made.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "saved")
    *texts, audio = caught.value.problems
    assert texts == ["train[1]: there is no text", "train[2]: text is empty"]
    assert audio.startswith("train[3]: its audio is not audio, or in a format that neither")


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_splits(folder)
    return str(caught.value).replace(str(folder), "HERE")


def test_what_cannot_be_read(tmp_path, capfd):
    logged = []
    handler = logging.Handler()
    handler.emit = logged.append
    logging.getLogger("datasets").addHandler(handler)
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    datasets.Dataset.from_dict({"sound": ["x"], "text": ["a"]}).save_to_disk(str(one))
    capfd.readouterr()
    assert refused(one) == "HERE: train has no column audio, but sound, text"
    two.mkdir()
    (two / "train.parquet").write_bytes(b"PAR1 and no more")
    assert refused(two).startswith("HERE cannot be read as a data set (")
    three.mkdir()
    (three / "state.json").write_text("{}")
    assert refused(three).startswith("HERE cannot be read as a data set (")
    logging.getLogger("datasets").removeHandler(handler)
    assert (logged, capfd.readouterr()) == ([], ("", ""))


def test_the_library_is_missing(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnsupportedOptionError) as caught:
        read_splits(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is a data set that needs the datasets library: install it with pip install "
        "'mlx-speech[train]'"
    )
