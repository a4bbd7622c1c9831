"""Folders and files of data, every kind of bad recording, and what is left out."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import soundfile

from mlx_speech.errors import InputError, UnsupportedOptionError
from mlx_speech.processing.prompts import GRANITE_4_1, TRANSCRIBE_LANGUAGE
from mlx_speech.training.data import load_data, read_splits
from mlx_speech.training.options import FineTuneOptions
from mlx_speech.training.rows import DataError

from .conftest import AUDIO, NAMES, TEXTS, write_jsonl


def texts(dataset) -> list[str]:
    return [example.row.text for example in dataset.examples]


class TestWhereDataLies:
    def test_a_folder_of_json_lines(self, read, folder):
        data = read(folder)
        assert texts(data.train) == [TEXTS[name] for name in NAMES[:4]]
        assert texts(data.valid) == [TEXTS[NAMES[4]]]
        assert data.left_out == ()

    def test_a_folder_of_csv(self, read, folder):
        for file in folder.glob("*.jsonl"):
            file.unlink()
        (folder / "train.csv").write_text(f"audio,text\n{NAMES[0]},one\n")
        (folder / "validation.csv").write_text(f"audio,text\n{NAMES[1]},two\n")
        data = read(folder)
        assert (texts(data.train), texts(data.valid)) == (["one"], ["two"])

    @pytest.mark.parametrize("name", ["any.jsonl", "any.CSV"])
    def test_a_file(self, read, folder, name):
        row = '{"audio": "%s", "text": "x"}' if "jsonl" in name else "audio,text\n%s,x"
        (folder / name).write_text(row % NAMES[0])
        data = read(folder / name)
        assert (texts(data.train), data.valid) == (["x"], None)

    def test_recordings_with_their_metadata(self, read, folder):
        for file in folder.glob("*.jsonl"):
            file.unlink()
        (folder / "metadata.csv").write_text(f"file_name,transcription\n{NAMES[0]},one\n")
        data = read(folder)
        assert (texts(data.train), data.valid) == (["one"], None)

    def test_splits_with_their_metadata(self, read, folder):
        for name in ("train", "test"):
            (folder / "x" / name).mkdir(parents=True)
            shutil.copy(AUDIO / NAMES[0], folder / "x" / name)
            rows = [{"file_name": NAMES[0], "text": name}]
            write_jsonl(folder / "x" / name / "metadata.jsonl", rows)
        data = read(folder / "x")
        assert (texts(data.train), texts(data.valid)) == (["train"], ["test"])

    def test_paths_are_relative_to_the_file(self, folder, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        entries = read_splits(folder.relative_to(tmp_path))["train"].entries
        assert os.path.exists(entries[0].audio.path)

    def test_there_is_none(self, tmp_path, folder):
        def refused(path) -> str:
            with pytest.raises(InputError) as caught:
                read_splits(path)
            return str(caught.value).replace(str(path), "HERE")

        assert refused(tmp_path / "x") == "HERE does not exist: give the file or folder of the data"
        form = "HERE is not data: that is in .jsonl or .csv files, or folders"
        assert refused(folder / NAMES[0]) == form
        (folder / "empty.jsonl").write_text("\n")
        assert refused(folder / "empty.jsonl") == "HERE has no rows in train"
        (folder / "valid.jsonl").write_text("")
        assert refused(folder) == "HERE has no rows in valid"
        shutil.copy(folder / "train.jsonl", folder / "train.csv")
        assert refused(folder) == "HERE has both train.jsonl and train.csv: remove one"
        (tmp_path / "none").mkdir()
        assert refused(tmp_path / "none").startswith("HERE has no data in it: that is train.jsonl")
        (tmp_path / "none" / "test.csv").write_text("audio,text\na,b")
        assert refused(tmp_path / "none") == "HERE has no rows in train"


def damaged_recordings(folder) -> dict[str, str]:
    """Recordings that cannot be trained on, and what is said of each."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16000 * 120)
    whole = (AUDIO / NAMES[0]).read_bytes()
    (folder / "text.wav").write_text("these are no samples, but a text")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "none.wav", noise[:0], 16000)
    soundfile.write(folder / "rate.wav", noise[:4000], 8)
    soundfile.write(folder / "short.wav", noise[:100], 16000)
    soundfile.write(folder / "long.wav", noise, 16000)
    soundfile.write(folder / "nan.wav", noise[:4000] * np.nan, 16000, "FLOAT")
    shutil.copy(AUDIO / "silence.flac", folder / "silent.wav")
    at = f"{folder}/"
    return {
        "missing.wav": f"{at}missing.wav does not exist: check the path",
        ".": f"{folder} is a folder: name the recordings in it",
        "a\0.wav": f"'{at}a\\x00.wav' cannot be read: embedded null byte",
        "text.wav": f"{at}text.wav is not audio, or in a format that neither soundfile nor FFmpeg",
        "empty.wav": f"{at}empty.wav is empty (0 bytes): record or copy it again",
        "cut.flac": f"{at}cut.flac is damaged or cut short (",
        "none.wav": f"{at}none.wav holds no samples: nothing was recorded",
        "rate.wav": f"the sampling rate of {at}rate.wav must be a number of hertz, 1000 to 10000000"
        ", but is 8",
        "nan.wav": f"{at}nan.wav has NaN or infinite samples: repair or export it again",
        "short.wav": "a recording of 100 samples is too short: at least 257 samples (16 ms) are",
        "long.wav": "it is too long: 1246 tokens of prompt, text and 120.0 s of audio, but there "
        "may be 1024",
        "silent.wav": "its audio is silent",
    }


class TestBadRows:
    def test_recordings(self, read, folder):
        bad = damaged_recordings(folder)
        names = [NAMES[0], *bad]
        write_jsonl(folder / "train.jsonl", [{"audio": name, "text": "x"} for name in names])
        with pytest.raises(DataError) as caught:
            read(folder)
        error = caught.value
        assert str(error) == (
            f"{len(bad)} of {len(names) + 1} rows cannot be used: mend them, or skip_bad leaves "
            "them out"
        )
        assert "--skip-bad leaves" in error.spelled(lambda name: f"--{name.replace('_', '-')}")
        for line, (problem, expected) in enumerate(
            zip(error.problems, bad.values(), strict=True), start=2
        ):
            assert problem.startswith(f"train.jsonl:{line}: {expected}"), problem
            assert "\n" not in problem
        data = read(folder, skip_bad=True)
        assert (texts(data.train), data.left_out) == (["x"], error.problems)

    def test_texts_and_prompts(self, read, folder):
        audio = {"audio": NAMES[0]}
        able = "Granite Speech 4.1, Granite Speech 4.1 Plus, Granite Speech 5.0"
        told = "this Granite Speech model was not trained for being told the language; these were:"
        bad = [
            (audio | {"text": "a <|audio|>"}, "the text has <|audio|> in it, which is a special"),
            (audio | {"text": "a<|end_of_text|>"}, "the text has <|end_of_text|> in it, which is"),
            (
                audio | {"text": "a", "prompt": "do <|audio|>"},
                "the prompt has <|audio|> in it, which stands for the recording",
            ),
            (audio | {"text": "a", "language": "en"}, f"language: {told} {able}"),
            (audio, "there is no text"),
        ]
        write_jsonl(folder / "valid.jsonl", [row for row, _ in bad])
        with pytest.raises(DataError) as caught:
            read(folder)
        for line, (problem, (_, expected)) in enumerate(
            zip(caught.value.problems, bad, strict=True), start=1
        ):
            assert problem.startswith(f"valid.jsonl:{line}: {expected}"), problem

    def test_none_is_left(self, read, folder):
        """Where nothing is left of a split, leaving out does not help."""
        write_jsonl(folder / "valid.jsonl", [{"audio": "no.wav", "text": "x"}])
        with pytest.raises(DataError, match=r"^1 of 5 rows cannot be used, and there are no"):
            read(folder, skip_bad=True)

    def test_too_long_for_the_option(self, read, folder):
        with pytest.raises(DataError) as caught:
            read(folder, max_seq_length=70)
        line = "it is too long: 87 tokens of prompt, text and 2.5 s of audio, but there may be 70"
        assert f"train.jsonl:1: {line}" in caught.value.problems
        data = read(folder, max_seq_length=87)
        assert data.train.num_tokens(0) == 87


def test_languages_are_those_of_the_model(tiny, folder, tmp_path):
    model, processor = tiny
    row = {"audio": NAMES[0], "text": "x"}
    row |= {"punctuate": True}
    rows = [row | {"language": "French"}, row | {"language": "it"}, row | {"language": "xx"}]
    rows.append(row | {"punctuate": False, "language": "fr"})
    write_jsonl(folder / "train.jsonl", rows)
    options = FineTuneOptions(skip_bad=True, adapter_path=str(tmp_path / "adapters"))
    style, processor.prompts = processor.prompts, GRANITE_4_1
    try:
        data = load_data(folder, model, processor, options)
    finally:
        processor.prompts = style
    assert TRANSCRIBE_LANGUAGE.format("French") in data.train.examples[0].prompt
    missing, unknown, alone = data.left_out
    assert missing.startswith(
        "train.jsonl:2: language: Granite Speech 4.1 was not trained for Ital"
    )
    assert unknown.startswith("train.jsonl:3: language 'xx' is not known; known are en (English)")
    assert alone.startswith("train.jsonl:4: Granite Speech 4.1 takes the language only")


def test_labels_of_a_ctc_head_that_nobody_knows(tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny[0].encoder.config, "output_dim", 42)
    options = FineTuneOptions(train_ctc_head=True, adapter_path=str(tmp_path))
    with pytest.raises(UnsupportedOptionError, match="nobody knows what the 42 labels of this CTC"):
        load_data(folder, *tiny, options)


def test_recordings_are_decoded_once(read, folder, monkeypatch):
    from mlx_speech.training import recordings

    opened = []
    original = recordings.open_recording

    def spy(source, **options):
        opened.append(source)
        return original(source, **options)

    monkeypatch.setattr(recordings, "open_recording", spy)
    shutil.copy(folder / NAMES[0], folder / "same.flac")
    rows = [{"audio": name, "text": "x"} for name in [*NAMES[:2], NAMES[0], "same.flac", "no.wav"]]
    write_jsonl(folder / "train.jsonl", rows)
    with pytest.raises(DataError):
        read(folder)
    assert [path.name for path in opened] == [*NAMES[:2], "no.wav", NAMES[4]]
    opened.clear()
    shutil.copy(folder / NAMES[0], folder / "no.wav")
    read(folder)
    assert opened == []
    next(folder.parent.glob("adapters/cache/recordings-*.json")).write_text('{"a": 5}')
    read(folder)
    assert len(opened) == 3


def test_progress_is_told(tiny, folder, tmp_path):
    told = []
    options = FineTuneOptions(adapter_path=str(tmp_path / "adapters"))
    load_data(folder, *tiny, options, lambda done, total: told.append((done, total)))
    assert told == [(n, 5) for n in range(1, 6)]
