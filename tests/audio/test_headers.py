"""What headers promise, of bytes made here."""

from __future__ import annotations

import io
import os
import struct

import pytest
from media import encoded, is_sine, load, make, refused, sine, write

from mlx_speech.audio import open_recording
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

    @pytest.mark.parametrize("size", [0, 1 << 62, (1 << 64) - 1])
    def test_long_sizes_that_are_unknown(self, tmp_path, size):
        samples = sine(seconds=2)
        for kind, tag in (("RF64", b"ds64"), ("W64", b"data")):
            data = bytearray(encoded(samples, format=kind))
            at = data.index(tag) + 16
            data[at : at + 8] = size.to_bytes(8, "little")
            is_sine(load(write(tmp_path / f"talk.{kind}", data)), seconds=2)

    def test_au_of_unknown_size(self, tmp_path):
        for size in (0, 0xFFFFFFFF):
            data = bytearray(encoded(sine(), format="AU"))
            data[8:12] = size.to_bytes(4, "big")
            is_sine(load(write(tmp_path / "talk.au", data)))

    def test_little_endian_au(self, tmp_path):
        data = encoded(sine(), format="AU", endian="LITTLE")
        is_sine(load(write(tmp_path / "talk.au", data)))
        assert "cut short" in refused(write(tmp_path / "talk.au", data[:-400]))

    def test_a_size_of_0_in_an_otherwise_right_header(self, tmp_path):
        data = bytearray(encoded(sine(hertz=441), format="WAV"))
        data[40:44] = bytes(4)
        is_sine(load(write(tmp_path / "talk.wav", data)), hertz=441)
        chunk = wav(b"") + b"LIST" + struct.pack("<I", 400) + bytes(400)
        assert "holds no samples" in refused(write(tmp_path / "none.wav", chunk))

    def test_voc_of_several_blocks(self, tmp_path):
        data = encoded(sine(), format="VOC")
        start = 26 + 16  # behind the heads of the file and of its block
        samples = data[start : start + 32000]
        head = struct.pack("<IBBHI", 16000, 16, 1, 4, 0)
        text = b"\5\3\0\0abc"
        parts = (samples[:10000], samples[10000:20000], samples[20000:])
        blocks = [head + part if not number else part for number, part in enumerate(parts)]
        kinds = (9, 2, 2)
        made = [
            bytes([kind]) + len(block).to_bytes(3, "little") + block
            for kind, block in zip(kinds, blocks, strict=True)
        ]
        is_sine(load(write(tmp_path / "talk.voc", data[:26] + text + b"".join(made) + b"\0")))

    @pytest.mark.parametrize(("kind", "at", "order"), [("WAV", 40, "little"), ("AU", 8, "big")])
    def test_what_is_behind_the_end_is_told(self, tmp_path, kind, at, order):
        data = bytearray(encoded(sine(hertz=441), format=kind))
        start = len(data) - 32000
        data[at : at + 4] = (16000).to_bytes(4, order)
        remark = f"by its header it ends after {start + 16000} bytes; the 16000 behind them were"
        for more, told in ((b"", True), (bytes(32000), False), (b"LIST" + bytes(400), False)):
            behind = data[: start + 16000] + more if more else data
            with open_recording(write(tmp_path / "talk", behind)) as recording:
                assert recording.duration == 0.5
                assert recording.remarks == ([f"{remark} not read"] if told else [])

    @pytest.mark.parametrize("size", [1 << 31, (1 << 32) - 1])
    def test_mp3_of_unknown_size(self, tmp_path, size):
        data = bytearray(encoded(sine(seconds=3), format="MP3"))
        at = max(data.find(b"Xing"), data.find(b"Info")) + 12
        data[at : at + 4] = size.to_bytes(4, "big")
        is_sine(load(write(tmp_path / "talk.mp3", data)), seconds=3, tolerance=0.02, slack=0.05)

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
