"""Data sets of a few of the bundled recordings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import DATA

from mlx_speech.models.granite_speech.encoder import GraniteSpeechCTCEncoder
from mlx_speech.training.data import load_data
from mlx_speech.training.options import FineTuneOptions

AUDIO = DATA / "audio"
MANIFEST = [json.loads(line) for line in (AUDIO / "manifest.jsonl").read_text().splitlines()]
TEXTS = {row["file"]: row["text"] for row in MANIFEST}
#: of different lengths, the shortest not first
NAMES = ["espeak_01.flac", "flite_08.flac", "espeak_00.flac", "espeak_02.flac", "festival_12.flac"]


def write_jsonl(file: Path, rows: list) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def folder(tmp_path) -> Path:
    """Recordings, `train.jsonl` with four of them, and `valid.jsonl` with another."""
    made = tmp_path / "data"
    made.mkdir()
    for name in NAMES:
        shutil.copy(AUDIO / name, made)
    rows = [{"audio": name, "text": TEXTS[name]} for name in NAMES]
    write_jsonl(made / "train.jsonl", rows[:4])
    write_jsonl(made / "valid.jsonl", rows[4:])
    return made


@pytest.fixture
def read(tiny, tmp_path):
    """`load_data` with the bundled model and options by name."""

    def read(data: Path, **options):
        options = {"adapter_path": str(tmp_path / "adapters"), **options}
        return load_data(data, *tiny, FineTuneOptions(**options))

    return read


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Appended to with the number of frames whenever an encoder is called."""
    calls = []
    original = GraniteSpeechCTCEncoder.__call__

    def spy(encoder, features, *args, **kwargs):
        calls.append(features.shape[1])
        return original(encoder, features, *args, **kwargs)

    monkeypatch.setattr(GraniteSpeechCTCEncoder, "__call__", spy)
    return calls
