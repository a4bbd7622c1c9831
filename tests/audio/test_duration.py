"""How long a recording may be, by its header or its size."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile
from conftest import DATA
from media import make

from mlx_speech.audio.duration import likely_duration


@pytest.mark.parametrize("name", ["talk.wav", "talk.flac", "talk.ogg"])
def test_by_a_header(tmp_path, name):
    soundfile.write(tmp_path / name, np.zeros(3 * 8000), 8000)
    assert likely_duration(str(tmp_path / name)) == pytest.approx(3, abs=0.01)


def test_of_a_film(tmp_path):
    path = make(tmp_path / "talk.mkv", np.zeros(2 * 16000, np.float32))
    assert likely_duration(str(path)) == pytest.approx(2, abs=0.1)


def test_by_its_size(tmp_path):
    """Of a FLAC file from a pipe, too, whose header does not know it."""
    (tmp_path / "notes.wav").write_bytes(b"no sound" * 4000)
    assert likely_duration(str(tmp_path / "notes.wav")) == 2
    data = bytearray((DATA / "audio" / "flite_08.flac").read_bytes())
    data[21] &= 0xF0  # 36 bits of the number of samples
    data[22:26] = bytes(4)
    (tmp_path / "pipe.flac").write_bytes(data)
    assert likely_duration(str(tmp_path / "pipe.flac")) == pytest.approx(len(data) / 16000)


def test_a_header_that_promises_too_much(tmp_path):
    (tmp_path / "long.wav").touch()
    os.truncate(tmp_path / "long.wav", 1 << 40)
    assert likely_duration(str(tmp_path / "long.wav")) == 1e6


def test_of_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which would never be opened
    for source in ("https://example.org/a.mp3", "nowhere.wav", "a\0b", str(tmp_path)):
        assert likely_duration(source) == 600
    assert likely_duration(str(tmp_path / "pipe")) == 600
