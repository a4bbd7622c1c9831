"""What headers promise, of bytes made here."""

from __future__ import annotations

import io
import os
import struct

import pytest
from media import encoded, make, sine

from mlx_speech.audio.headers import check_length
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


def caf(data: bytes = bytes(200), size: int = 204) -> bytes:
    form = struct.pack(">4sqd4sIIIII", b"desc", 32, 16000.0, b"lpcm", 0, 2, 1, 1, 16)
    return b"caff\0\1\0\0" + form + struct.pack(">4sqI", b"data", size, 0) + data


class TestLength:
    @pytest.mark.parametrize("kind", ["WAV", "AIFF", "RF64", "FLAC", "CAF", "W64", "AU", "VOC"])
    def test_whole_files(self, tmp_path, kind):
        with opened(tmp_path, encoded(sine(), format=kind)) as file:
            assert check_length(file, "file")
            assert file.tell() == 0

    @pytest.mark.parametrize("kind", ["WAV", "AIFF", "RF64", "CAF", "W64", "AU", "VOC", "NIST"])
    @pytest.mark.parametrize("lost", [260, 10_000])
    def test_cut_short(self, tmp_path, kind, lost):
        data = encoded(sine(seconds=2), format=kind)
        with (
            opened(tmp_path, data[:-lost]) as file,
            pytest.raises(AudioError, match="file is cut short, its header promises more"),
        ):
            check_length(file, "file")

    @pytest.mark.parametrize("kind", ["WAV", "AIFF", "RF64", "CAF", "W64", "AU", "VOC", "NIST"])
    @pytest.mark.parametrize("lost", [1, 2, 8, 16, 28, 36, 200])
    def test_off_by_a_few_bytes(self, tmp_path, kind, lost):
        with opened(tmp_path, encoded(sine(seconds=2), format=kind)[:-lost]) as file:
            assert check_length(file, "file")

    @pytest.mark.parametrize("lost", [0, 400])
    def test_big_endian_with_chunks_before_its_data(self, tmp_path, lost):
        """An odd chunk is followed by a byte that its length does not count."""
        form = struct.pack(">4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
        note = struct.pack(">4sI", b"LIST", 3) + b"abc" + b"\0"
        body = b"WAVE" + form + note + struct.pack(">4sI", b"data", 500) + bytes(500 - lost)
        data = struct.pack(">4sI", b"RIFX", len(body)) + body
        with opened(tmp_path, data) as file:
            if lost:
                with pytest.raises(AudioError, match="cut short"):
                    check_length(file, "file")
            else:
                assert check_length(file, "file")

    def test_wav_over_4_gib(self, tmp_path):
        with opened(tmp_path, wav()) as file:
            os.truncate(file.name, (1 << 32) + 1)  # a hole, which takes no room
            with pytest.raises(AudioError, match="over 4 GiB, which hides its length"):
                check_length(file, "file")

    def test_a_length_of_0_is_unknown_unless_nothing_follows(self, tmp_path):
        with opened(tmp_path, wav(size=0, riff=0)) as file:
            assert not check_length(file, "file")
        with opened(tmp_path, wav(data=b"")) as file:
            assert check_length(file, "file")
        with opened(tmp_path, wav(size=0) + bytes(12)) as file:
            assert not check_length(file, "file")

    @pytest.mark.parametrize("size", [0x7F000050, 0x7FFFF000, 0x80000000, 0xFFFFFFFF, 2 * 10**9])
    def test_placeholders_promise_nothing(self, tmp_path, size):
        with opened(tmp_path, wav(size=size)) as file:
            assert check_length(file, "file")

    @pytest.mark.parametrize("size", [-1, 204])
    def test_caf_of_unknown_length(self, tmp_path, size):
        with opened(tmp_path, caf(size=size)) as file:
            assert check_length(file, "file")

    def test_ogg_ends_with_a_whole_page(self, tmp_path):
        data = encoded(sine(seconds=2), format="OGG")
        for whole in (data, data + bytes(70_000)):
            with opened(tmp_path, whole) as file:
                assert not check_length(file, "file")  # another stream may follow
        for lost in (1, 1000):
            with (
                opened(tmp_path, data[:-lost]) as file,
                pytest.raises(AudioError, match="cut short"),
            ):
                check_length(file, "file")

    def test_mp3_has_the_bytes_of_its_header(self, tmp_path):
        data = encoded(sine(seconds=3), format="MP3")
        bare = make(tmp_path / "bare.mp3", sine(seconds=3), write_xing="0").read_bytes()
        tag = b"ID3\3\0\0\0\0\x4e\x10" + bytes(10000)
        whole = (data, tag + data, data + b"TAG" + bytes(125), data + data, bare, bare[:-1000])
        for each in (*whole, b"\xff\xfb"):
            with opened(tmp_path, each) as file:
                assert not check_length(file, "file")  # libsndfile would guess
        for part in (data[:-1500], tag + data[: len(data) // 2]):
            with opened(tmp_path, part) as file, pytest.raises(AudioError, match="cut short"):
                check_length(file, "file")
