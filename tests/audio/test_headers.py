"""What headers promise, of bytes made here."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
import soundfile
from media import encoded, make, sine

from mlx_speech.audio.headers import checked_size, lacks_length
from mlx_speech.errors import AudioError


def opened(tmp_path, data: bytes) -> io.FileIO:
    path = tmp_path / "file"
    path.write_bytes(data)
    return io.FileIO(path)


def wav(data: bytes = bytes(200), riff: int | None = None, size: int | None = None) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
    size = len(data) if size is None else size
    body = b"WAVE" + form + struct.pack("<4sI", b"data", size) + data
    return struct.pack("<4sI", b"RIFF", len(body) if riff is None else riff) + body


class TestSize:
    @pytest.mark.parametrize("kind", ["WAV", "AIFF", "RF64", "OGG", "FLAC", "CAF"])
    def test_whole_files_pass_as_they_are(self, tmp_path, kind):
        with opened(tmp_path, encoded(sine(), format=kind)) as file:
            assert checked_size(file, "file") is file
            assert file.tell() == 0

    @pytest.mark.parametrize("lost", [1, 50, 199])
    def test_missing_bytes(self, tmp_path, lost):
        with (
            opened(tmp_path, wav()[:-lost]) as file,
            pytest.raises(AudioError, match="file is cut short, its header promises more"),
        ):
            checked_size(file, "file")

    @pytest.mark.parametrize("kind", ["AIFF", "RF64", "OGG"])
    @pytest.mark.parametrize("lost", [1, 1000])
    def test_other_kinds_cut_short(self, tmp_path, kind, lost):
        data = encoded(sine(seconds=2), format=kind)
        with opened(tmp_path, data[:-lost]) as file, pytest.raises(AudioError, match="cut short"):
            checked_size(file, "file")

    @pytest.mark.parametrize("lost", [0, 1])
    def test_big_endian_with_chunks_before_its_data(self, tmp_path, lost):
        """An odd chunk is followed by a byte that its length does not count."""
        form = struct.pack(">4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
        note = struct.pack(">4sI", b"LIST", 3) + b"abc" + b"\0"
        body = b"WAVE" + form + note + struct.pack(">4sI", b"data", 200) + bytes(200 - lost)
        data = struct.pack(">4sI", b"RIFX", len(body)) + body
        with opened(tmp_path, data) as file:
            if lost:
                with pytest.raises(AudioError, match="cut short"):
                    checked_size(file, "file")
            else:
                assert checked_size(file, "file") is file

    def test_wav_over_4_gib(self, tmp_path):
        with opened(tmp_path, wav()) as file:
            os.truncate(file.name, (1 << 32) + 1)  # a hole, which takes no room
            with pytest.raises(AudioError, match="over 4 GiB, which hides its length"):
                checked_size(file, "file")

    def test_a_length_of_0_is_read_as_unknown(self, tmp_path):
        with opened(tmp_path, wav(size=0, riff=0)) as file:
            view = checked_size(file, "file")
            assert view is not file
            assert soundfile.SoundFile(view).frames >= 100
            for start, expected in ((38, b"ta\xff\xff\xff\xff\0\0"), (41, b"\xff\xff\xff")):
                view.seek(start)
                buffer = bytearray(len(expected))
                view.readinto(buffer)
                assert buffer == expected

    def test_an_empty_recording_has_a_length_of_0(self, tmp_path):
        with opened(tmp_path, wav(data=b"")) as file:
            assert checked_size(file, "file") is file

    @pytest.mark.parametrize("size", [0x7FFFF000, 0x80000000, 0xFFFFFFFF])
    def test_placeholders_promise_nothing(self, tmp_path, size):
        with opened(tmp_path, wav(size=size)) as file:
            assert checked_size(file, "file") is file


class TestMP3:
    def test_one_that_states_its_length(self, tmp_path):
        data = encoded(sine(seconds=3), format="MP3")
        tag = b"ID3\3\0\0\0\0\x4e\x10" + bytes(10000)
        for whole in (data, tag + data, data + b"TAG" + bytes(125)):
            with opened(tmp_path, whole) as file:
                assert not lacks_length(file)

    def test_joined_ones_and_one_without_a_header(self, tmp_path):
        data = encoded(sine(seconds=3), format="MP3")
        bare = make(tmp_path / "bare.mp3", sine(seconds=3), write_xing="0").read_bytes()
        for whole in (data + data, data[:-50] + data, bare):
            with opened(tmp_path, whole) as file:
                assert lacks_length(file)

    @pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC", "OGG", "CAF"])
    def test_other_kinds(self, tmp_path, kind):
        noise = np.random.default_rng(0).uniform(-1, 1, 20000)
        with opened(tmp_path, encoded(noise, format=kind)) as file:
            assert not lacks_length(file)
        with opened(tmp_path, make(tmp_path / "a.aac", noise).read_bytes()) as file:
            assert not lacks_length(file)
        with opened(tmp_path, b"\xff") as file:
            assert not lacks_length(file)
