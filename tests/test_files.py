"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from mlx_speech.files import replacing, replacing_folder


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
