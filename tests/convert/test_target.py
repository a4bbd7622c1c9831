"""What a conversion may replace, and what it says where it cannot write."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DECODERS, ROOT, TINY

from convert import convert
from convert.source import Source
from mlx_speech import CheckpointError, InputError
from mlx_speech.loading import load_model

LLAMA, GRANITE = DECODERS / "llama", DECODERS / "granite"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def converted(tmp_path) -> Path:
    (result,) = convert(LLAMA, tmp_path / "out")
    return result.folder


class TestReplaced:
    def test_a_conversion(self, converted):
        """All of it, also where it was made of another one."""
        (second,) = convert(GRANITE, converted, overwrite=True)
        assert load_model(second.folder).config.model_type == "granite"
        (third,) = convert(second.folder, converted.with_name("third"), quantize=True)
        config = json.loads((third.folder / "config.json").read_text())
        assert set(config["converted_by"]["files"]) == names(third.folder)
        convert(LLAMA, third.folder, overwrite=True)
        assert load_model(third.folder).config.model_type == "llama"

    @pytest.mark.parametrize("name", ["thesis.txt", "notes.json", "recordings/talk.wav", "drafts/"])
    def test_not_what_lies_in_it(self, converted, name):
        """It is named, and stays, with the model."""
        path = converted / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("years of work")
        before = {file: file.read_bytes() for file in converted.rglob("*") if file.is_file()}
        message = f"holds what no conversion wrote, and is not replaced: {name.split('/')[0]}"
        with pytest.raises(InputError, match=message):
            convert(GRANITE, converted, overwrite=True)
        assert {f: f.read_bytes() for f in converted.rglob("*") if f.is_file()} == before
        assert path.exists()
        assert names(converted.parent) == {"out"}

    def test_nor_what_comes_while_it_is_made(self, converted, monkeypatch):
        copy = Source.copy_carried

        def copy_carried(*args, **options):
            (converted / "thesis.txt").write_text("years of work")
            copy(*args, **options)

        monkeypatch.setattr(Source, "copy_carried", copy_carried)
        with pytest.raises(InputError, match=r"is not replaced: thesis\.txt; move that away"):
            convert(GRANITE, converted, overwrite=True)
        assert (converted / "thesis.txt").read_text() == "years of work"
        assert load_model(converted).config.model_type == "llama"
        assert names(converted.parent) == {"out"}

    def test_what_a_mac_puts_there_does_not_count(self, converted):
        for name in (".DS_Store", "._config.json"):
            (converted / name).touch()
        (result,) = convert(GRANITE, converted, overwrite=True)
        assert not {".DS_Store", "._config.json"} & names(result.folder)

    @pytest.mark.parametrize("config", [None, "{}", "[]", "{", '{"converted_by": 1}'])
    def test_no_folder_of_something_else(self, tmp_path, config):
        """A config.json alone makes it none of ours."""
        home = tmp_path / "home"
        home.mkdir()
        (home / "thesis.txt").write_text("years of work")
        if config is not None:
            (home / "config.json").write_text(config)
        with pytest.raises(InputError, match=r"is not replaced: .*thesis\.txt; move that away"):
            convert(LLAMA, home, overwrite=True)
        assert (home / "thesis.txt").read_text() == "years of work"

    def test_no_file(self, tmp_path):
        (tmp_path / "letter").write_text("dear")
        with pytest.raises(InputError, match="letter is a file; give another mlx_path"):
            convert(LLAMA, tmp_path / "letter", overwrite=True)
        with pytest.raises(InputError, match=r"below is to be below the file \S*letter; give an"):
            convert(LLAMA, tmp_path / "letter" / "below")
        assert (tmp_path / "letter").read_text() == "dear"

    @pytest.mark.parametrize("name", [".", "", "..", "../here", "link"])
    def test_not_the_current_folder(self, tmp_path, monkeypatch, name):
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "link").symlink_to("../here")
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(InputError, match=r"current folder|must be the name of a folder"):
            convert(LLAMA, name, overwrite=True)
        assert Path.cwd().is_dir()

    def test_what_a_link_leads_to(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "out").symlink_to("disk/model")
        for source in (LLAMA, GRANITE):
            (result,) = convert(source, tmp_path / "out", overwrite=source is GRANITE)
            assert result.folder == tmp_path / "out"
            assert load_model(tmp_path / "disk" / "model").config.model_type == source.name
            assert (tmp_path / "out").is_symlink()
            assert names(tmp_path) == {"disk", "out"}
            assert names(tmp_path / "disk") == {"model"}


class TestAtOnce:
    def test_one_of_several_gets_the_name(self, tmp_path):
        """Without leave to overwrite; the others say so."""
        code = (
            "import sys\n"
            "from convert import convert\n"
            "from convert.source import Source\n"
            "copy = Source.copy_carried\n"
            "def copy_carried(*args, **options):\n"
            "    print('now', flush=True)\n"
            "    sys.stdin.readline()\n"
            "    copy(*args, **options)\n"
            "Source.copy_carried = copy_carried\n"
            f"convert({str(LLAMA)!r}, {str(tmp_path / 'out')!r})\n"
        )
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        processes = [
            subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes)
            for _ in range(3)
        ]
        for process in processes:
            assert process.stdout.readline() == "now\n"
        errors = [process.communicate("go\n")[1] for process in processes]
        assert sorted(process.returncode for process in processes) == [0, 1, 1]
        told = f"InputError: {tmp_path / 'out'} exists already; overwrite replaces it\n"
        assert [error.endswith(told) for error in errors].count(True) == 2
        assert load_model(tmp_path / "out")
        assert names(tmp_path) == {"out"}


class TestNotWritten:
    def test_a_name_that_is_too_long(self, tmp_path, monkeypatch):
        """Before anything is read or fetched; with the bits that are added to it."""
        monkeypatch.setattr(Source, "find", None)
        with pytest.raises(InputError, match="the name is too long, 256 bytes of 255"):
            convert(LLAMA, tmp_path / ("x" * 256))
        with pytest.raises(InputError, match="the name is too long, 256 bytes of 255"):
            convert(LLAMA, tmp_path / ("x" * 251), quantize=True, q_bits=[4, 8])
        assert not names(tmp_path)

    def test_the_longest_name(self, tmp_path):
        name = "é" * 127 + "x"
        for overwrite in (False, True):
            (result,) = convert(LLAMA, tmp_path / name, overwrite=overwrite)
        assert load_model(result.folder)
        assert names(tmp_path) == {name}

    @pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
    def test_a_full_disk_is_the_targets(self, tmp_path, monkeypatch, kind):
        """Also while a file is copied, where the system names that of the source."""

        def copyfile(source, target):
            raise OSError(kind, os.strerror(kind), str(source), None, str(target))

        monkeypatch.setattr(shutil, "copyfile", copyfile)
        with pytest.raises(CheckpointError) as raised:
            convert(TINY, tmp_path / "out")
        reason = f"cannot be written: {os.strerror(kind)}; nothing was kept of it"
        assert str(raised.value) == f"{tmp_path / 'out'}: {reason}"
        assert not names(tmp_path)

    def test_what_cannot_be_read_is_the_sources(self, tmp_path, monkeypatch):
        def copyfile(source, target):
            raise OSError(errno.EIO, "Input/output error", str(source))

        monkeypatch.setattr(shutil, "copyfile", copyfile)
        message = rf"{TINY}/\S+: cannot be read: Input/output error$"
        with pytest.raises(CheckpointError, match=message):
            convert(TINY, tmp_path / "out")
        assert not names(tmp_path)
