"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlx_speech.errors import InputError
from mlx_speech.files import check_name, clean_up, replacing, replacing_all, replacing_folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_within(context, work, error) -> None:
    with context as temporary:
        work(temporary)
        raise error


def no_links(*args) -> None:
    """As on exFAT and some network drives."""
    raise PermissionError(errno.EPERM, "Operation not permitted")


def allow(folder: Path) -> None:
    """Nothing speaks against replacing it."""


class TestName:
    """It may be as long as the file system allows, which counts bytes."""

    @pytest.mark.parametrize("name", ["x" * 251 + ".txt", "é" * 125 + "x.txt"])
    def test_the_longest(self, tmp_path, name):
        path = tmp_path / name
        assert len(os.fsencode(name)) == os.pathconf(tmp_path, "PC_NAME_MAX") == 255
        check_name(path)
        for overwrite in (False, True):
            with replacing(path, overwrite=overwrite) as temporary:
                temporary.write_text("x")
        path.unlink()
        for check in (None, allow):
            with replacing_folder(path, check_replaced=check) as temporary:
                (temporary / "new").touch()
        clean_up(path)
        assert names(tmp_path) == [name]

    @pytest.mark.parametrize("name", ["x" * 256, "é" * 128, f"{'x' * 256}/a"])
    def test_too_long(self, tmp_path, name):
        """Also in folders that are not there yet."""
        for folder in (tmp_path, tmp_path / "a" / "b"):
            with pytest.raises(InputError, match="the name is too long, 256 bytes of 255; shorten"):
                check_name(folder / name)

    def test_a_path_that_is_too_long(self, tmp_path):
        with pytest.raises(InputError, match=r"the path is too long, \d+ bytes of 4096; shorten"):
            check_name(tmp_path.joinpath(*["x" * 200] * 21))

    @pytest.mark.parametrize("answer", [-1, OSError(errno.EINVAL, "Invalid argument")])
    def test_where_nobody_tells(self, tmp_path, monkeypatch, answer):
        def pathconf(*args) -> int:
            if isinstance(answer, OSError):
                raise answer
            return answer

        monkeypatch.setattr(os, "pathconf", pathconf)
        check_name(tmp_path / ("x" * 255))
        with pytest.raises(InputError, match="256 bytes of 255"):
            check_name(tmp_path / ("x" * 256))


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

    def test_an_error_names_the_file(self, tmp_path):
        """And not the temporary one."""
        with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "none" / "a.txt"):
            pass
        assert raised.value.filename == str(tmp_path / "none" / "a.txt")
        full = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(OSError, match="No space") as raised:
            fail_within(replacing(tmp_path / "a.txt"), lambda temporary: None, full)
        assert raised.value.filename == str(tmp_path / "a.txt")

    def test_a_link_stays(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "a.txt").symlink_to("disk/b.txt")
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "disk" / "b.txt").read_text() == "new"
        assert (tmp_path / "a.txt").is_symlink()

    @pytest.mark.parametrize("links", [True, False])
    def test_what_has_come_meanwhile_stays(self, tmp_path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(os, "link", no_links)
        path = tmp_path / "a.txt"

        def write() -> None:
            with replacing(path, overwrite=False) as temporary:
                temporary.write_text("ours")
                path.write_text("theirs")

        with pytest.raises(InputError, match=r"a\.txt exists already; overwrite replaces it"):
            write()
        assert (path.read_text(), names(tmp_path)) == ("theirs", ["a.txt"])

    @pytest.mark.parametrize("links", [True, False])
    def test_one_of_several_writers_gets_it(self, tmp_path, monkeypatch, links):
        """Each ready when the last one is."""
        if not links:
            monkeypatch.setattr(os, "link", no_links)
        together = threading.Barrier(8)

        def write(number: int) -> None:
            with replacing(tmp_path / "a.txt", overwrite=False) as temporary:
                temporary.write_text(str(number))
                together.wait()

        with ThreadPoolExecutor(8) as pool:
            errors = [future.exception() for future in [pool.submit(write, n) for n in range(8)]]
        assert [type(error) for error in errors if error] == [InputError] * 7
        assert (tmp_path / "a.txt").read_text() == str(errors.index(None))
        assert names(tmp_path) == ["a.txt"]

    @pytest.mark.parametrize("links", [True, False])
    def test_several_appear_together_or_not_at_all(self, tmp_path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(os, "link", no_links)
        paths = [tmp_path / name for name in ("c", "a", "b")]
        with replacing_all(paths, overwrite=False) as temporaries:
            for path, temporary in zip(paths, temporaries, strict=True):
                temporary.write_text(path.name)
        assert [path.read_text() for path in paths] == ["c", "a", "b"]
        paths[1].unlink()
        paths[2].unlink()
        with pytest.raises(InputError, match="c exists"), replacing_all(paths, overwrite=False):
            pass
        assert names(tmp_path) == ["c"]


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
        with replacing_folder(path, check_replaced=allow) as temporary:
            (temporary / "new").touch()
            assert names(path) == ["old"]
        assert (names(path), names(tmp_path)) == (["new"], ["model"])

    def test_a_link_stays(self, tmp_path):
        """What it leads to is replaced, or made."""
        (tmp_path / "disk").mkdir()
        (tmp_path / "model").symlink_to("disk/model")
        for name in ("first", "second"):
            with replacing_folder(tmp_path / "model", check_replaced=allow) as temporary:
                assert temporary.parent == tmp_path / "disk"
                (temporary / name).touch()
            assert names(tmp_path) == ["disk", "model"]
            assert names(tmp_path / "disk" / "model") == [name]
            assert (tmp_path / "model").is_symlink()

    def test_what_has_come_meanwhile_stays(self, tmp_path):
        """Also where there was something that may be replaced at the beginning."""
        path = tmp_path / "model"

        def refuse(folder: Path) -> None:
            raise InputError(f"there is {names(folder)}")

        def write() -> None:
            with replacing_folder(path, check_replaced=refuse):
                path.mkdir()
                (path / "thesis").touch()

        with pytest.raises(InputError, match=r"there is \['thesis'\]"):
            write()
        assert (names(path), names(tmp_path)) == (["thesis"], ["model"])

    @pytest.mark.parametrize("check", [None, lambda folder: None])
    def test_a_failure_leaves_what_was_there(self, tmp_path, check):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").touch()
        with pytest.raises(KeyError):
            fail_within(
                replacing_folder(path, check_replaced=check),
                lambda temporary: (temporary / "new").touch(),
                KeyError,
            )
        assert (names(path), names(tmp_path)) == (["old"], ["model"])

    def test_without_overwrite_a_full_folder_stays(self, tmp_path):
        path = tmp_path / "model"
        path.mkdir()
        (path / "old").touch()
        with pytest.raises(InputError, match="exists"), replacing_folder(path) as temporary:
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
            "with replacing_folder(path, check_replaced=print) as new:\n"
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
            "with replacing_folder(path, check_replaced=print) as new:\n"
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
