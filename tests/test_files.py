"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from mlx_speech.files import clean_up, replacing, replacing_folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_within(context, work, error) -> None:
    with context as temporary:
        work(temporary)
        raise error


class TestFile:
    def test_it_appears_at_the_end(self, tmp_path):
        path = tmp_path / "a.txt"
        with replacing(path) as temporary:
            temporary.write_text("new")
            assert not path.exists()
            assert temporary.parent == tmp_path
        assert (path.read_text(), names(tmp_path)) == ("new", ["a.txt"])

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_failure_leaves_what_was_there(self, tmp_path, error):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with pytest.raises(error):
            fail_within(replacing(path), lambda temporary: temporary.write_text("hal"), error)
        assert (path.read_text(), names(tmp_path)) == ("old", ["a.txt"])

    @pytest.mark.parametrize("umask", [0o022, 0o077])
    def test_its_permissions_are_those_of_any_new_file(self, tmp_path, umask):
        before = os.umask(umask)
        try:
            with replacing(tmp_path / "a.txt") as temporary:
                temporary.write_text("x")
            assert os.umask(umask) == umask
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "a.txt"):
            pass


class TestFolder:
    def test_it_appears_at_the_end(self, tmp_path):
        path = tmp_path / "deep" / "model"
        with replacing_folder(path) as temporary:
            (temporary / "config.json").write_text("{}")
            assert not path.exists()
        assert (names(path), names(path.parent)) == (["config.json"], ["model"])

    def test_it_takes_the_place_of_another(self, tmp_path):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").touch()
        with replacing_folder(path, overwrite=True) as temporary:
            (temporary / "new").touch()
            assert names(path) == ["old"]
        assert (names(path), names(tmp_path)) == (["new"], ["model"])

    @pytest.mark.parametrize("overwrite", [True, False])
    def test_a_failure_leaves_what_was_there(self, tmp_path, overwrite):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").touch()
        with pytest.raises(KeyError):
            fail_within(
                replacing_folder(path, overwrite=overwrite),
                lambda temporary: (temporary / "new").touch(),
                KeyError,
            )
        assert (names(path), names(tmp_path)) == (["old"], ["model"])

    def test_without_overwrite_a_full_folder_stays(self, tmp_path):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").touch()
        with pytest.raises(OSError, match="not empty"), replacing_folder(path) as temporary:
            (temporary / "new").touch()
        assert (names(path), names(tmp_path)) == (["old"], ["model"])


def killed(path, code: str) -> None:
    """Run a script with the path as its argument, which dies in the middle."""
    imports = "import os, sys\nfrom pathlib import Path\nfrom mlx_speech.files import *\n"
    path_line = "path = Path(sys.argv[1])\n"
    done = subprocess.run([sys.executable, "-c", imports + path_line + code, path])
    assert done.returncode == 9


class TestKilled:
    def test_a_file_is_as_it_was(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        killed(path, "with replacing(path) as new:\n new.write_text('half')\n os._exit(9)")
        assert path.read_text() == "old"

    def test_a_folder_is_as_it_was(self, tmp_path):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").touch()
        killed(
            path,
            "with replacing_folder(path, overwrite=True) as new:\n"
            " (new / 'new').touch()\n"
            " os._exit(9)",
        )
        assert names(path) == ["old"]
        assert len(names(tmp_path)) == 2
        clean_up(path)
        assert (names(path), names(tmp_path)) == (["old"], ["model"])

    def test_a_folder_out_of_the_way_comes_back(self, tmp_path):
        """Dead after the old one was moved and before the new one took its place."""
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").touch()
        killed(
            path,
            "rename = Path.rename\n"
            "def once(self, target):\n"
            " rename(self, target)\n"
            " os._exit(9)\n"
            "Path.rename = once\n"
            "with replacing_folder(path, overwrite=True) as new:\n"
            " (new / 'new').touch()",
        )
        assert not path.exists()
        clean_up(path)
        assert (names(path), names(tmp_path)) == (["old"], ["model"])

    def test_what_is_in_use_or_not_ours_stays(self, tmp_path):
        path = tmp_path / "model"
        (tmp_path / ".model.txt").touch()
        with replacing_folder(path) as temporary:
            (temporary / "new").touch()
            clean_up(path)
            assert names(temporary) == ["new"]
        assert (names(path), names(tmp_path)) == (["new"], [".model.txt", "model"])
