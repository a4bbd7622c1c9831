"""What mutations make of a file: another one, for the most part of its kind."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from pathlib import Path
from random import Random

import mlx.core as mx
import pytest

from tests.pytorch_files import save_pytorch_bin

from .mutations import (
    change_bytes,
    change_header,
    change_integer,
    change_json,
    change_pickle,
    change_tensor,
    change_values,
    mutate,
)

CONFIG = {"hidden_size": 64, "rope": {"type": "default"}, "ids": [1, 2], "inner": '{"length": 3}'}
WEIGHTS = {"a.weight": mx.arange(6.0).reshape(2, 3), "b.bias": mx.zeros(4)}


def randoms(count: int = 200) -> list[Random]:
    return [Random(number) for number in range(count)]


@pytest.fixture
def safetensors(tmp_path):
    mx.save_safetensors(str(tmp_path / "a.safetensors"), WEIGHTS, {"format": "pt"})
    return (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize("change", [change_bytes, change_integer])
@pytest.mark.parametrize("data", [b"", b"\0", bytes(range(256)) * 40])
def test_bytes(change, data):
    changed = [change(data, random)[0] for random in randoms()]
    assert len(set(changed)) > (1 if len(data) < 10 else 150)
    assert max(map(len, changed)) <= 2 * len(data) + 300


def test_json_stays_json_and_all_of_it_changes():
    data = json.dumps(CONFIG).encode()
    changed = [change_json(data, random)[0] for random in randoms(1000)]
    assert sum(text != data for text in changed) > 900
    shallow = [json.loads(text) for text in changed if b"[[[[" not in text]
    assert 900 < len(shallow) < 1000
    for key, value in CONFIG.items():
        found = [other.get(key, "gone") for other in shallow if isinstance(other, dict)]
        assert any(other not in (value, "gone") for other in found)
        assert "gone" in found
    inside = {str(other.get("inner")) for other in shallow if isinstance(other, dict)}
    assert '{"length": 6}' in inside


@pytest.mark.parametrize("change", [change_header, change_tensor, change_values])
def test_safetensors_have_a_header_of_the_length_that_they_say(change, safetensors):
    different = 0
    for random in randoms():
        data, what = change(safetensors, random)
        length = int.from_bytes(data[:8], "little")
        assert len(data) - length == len(safetensors) - int.from_bytes(safetensors[:8], "little")
        different += data != safetensors
        assert what
    assert different > 150


def test_a_pickle_changes_within_its_archive(tmp_path):
    save_pytorch_bin(tmp_path / "a.bin", WEIGHTS)
    data = (tmp_path / "a.bin").read_bytes()
    whole = zipfile.ZipFile(io.BytesIO(data))
    broken = 0
    for random in randoms():
        changed = zipfile.ZipFile(io.BytesIO(change_pickle(data, random)[0]))
        assert changed.namelist() == whole.namelist()
        different = [name for name in whole.namelist() if whole.read(name) != changed.read(name)]
        assert different in ([], ["archive/data.pkl"])
        try:
            pickletools.dis(changed.read("archive/data.pkl"), io.StringIO())
        except Exception:  # what the reader of pickles is tried with
            broken += 1
    assert 20 < broken < 180


def test_a_file_is_changed_by_what_goes_with_its_ending():
    data = json.dumps(CONFIG).encode()
    told = [mutate(Path("config.json"), data, random)[1] for random in randoms()]
    assert any(".hidden_size = " in what for what in told)
    assert any(" bytes at " in what for what in told)
    assert not any(".hidden_size = " in mutate(Path("a.wav"), data, r)[1] for r in randoms())
