"""Files are told apart by their size, beginning and end."""

from __future__ import annotations

import os

from mlx_speech.distributed.digests import digest, folder_digests


def written(path, data: bytes) -> str | None:
    path.write_bytes(data)
    return digest(path)


def test_small_files_are_read_whole(tmp_path):
    data = bytes(1 << 20)
    first = written(tmp_path / "a", data)
    assert len(first) == 12
    assert first == written(tmp_path / "b", data)
    middle = data[: 1 << 19] + b"x" + data[1 + (1 << 19) :]
    assert len({first, written(tmp_path / "c", middle), written(tmp_path / "d", data[1:])}) == 3


def test_large_ones_by_their_ends(tmp_path):
    size = 3 << 20
    data = bytes(size)
    first = written(tmp_path / "a", data)
    others = [b"x" + data[1:], data[1:] + b"x", data[1:]]
    assert len({first, *(written(tmp_path / "b", other) for other in others)}) == 4
    middle = data[: size // 2] + b"x" + data[size // 2 + 1 :]
    assert first == written(tmp_path / "b", middle)  # terabytes are not read


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which would never be opened
    assert digest(tmp_path / "pipe") == digest(tmp_path) == "no file"
    assert digest(tmp_path / "nowhere") is None
    assert digest("a\0b") is None


def test_folder(tmp_path):
    (tmp_path / "a").write_text("a")
    assert folder_digests(tmp_path, ["a", "b"]) == {"a": digest(tmp_path / "a")}
