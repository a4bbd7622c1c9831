"""What is named on a command line: files, folders, patterns, addresses."""

from __future__ import annotations

import os

import pytest

from mlx_speech.cli.inputs import find_inputs


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Recordings (empty ones) and other files, in the current folder."""
    for name in (
        "talk.wav",
        "week/b.MP3",
        "week/a.flac",
        "week/notes.txt",
        "week/.hidden.wav",
        "week/._a.flac",
        "week/monday/talk.wav",
        "week/monday/film.mkv",
        "week/.trash/old.wav",
        "none/notes.txt",
        "odd [1].wav",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*names, recursive=False) -> list[str]:
    result = find_inputs(names, recursive)
    assert not result.failures
    return [each.source for each in result.inputs]


class TestFind:
    def test_a_folder_stands_for_its_recordings(self, tree):
        assert found("week") == ["week/a.flac", "week/b.MP3"]

    def test_recursive(self, tree):
        inside = ["week/a.flac", "week/b.MP3", "week/monday/film.mkv", "week/monday/talk.wav"]
        assert found("week", recursive=True) == inside
        folders = [str(i.folder) for i in find_inputs(["week", "talk.wav"], True).inputs]
        assert folders == [".", ".", "monday", "monday", "."]

    def test_a_named_file_may_have_any_ending(self, tree):
        assert found("week/notes.txt") == ["week/notes.txt"]

    @pytest.mark.parametrize(
        ("pattern", "matches"),
        [
            ("week/*.flac", ["week/a.flac"]),
            ("week/?.*", ["week/a.flac", "week/b.MP3"]),
            ("week/[b].MP3", ["week/b.MP3"]),
            ("**/talk.wav", ["talk.wav", "week/monday/talk.wav"]),
            ("wee*", ["week/a.flac", "week/b.MP3"]),
            ("odd [1].wav", ["odd [1].wav"]),
        ],
    )
    def test_patterns(self, tree, pattern, matches):
        assert found(pattern) == matches

    def test_each_file_once(self, tree):
        os.symlink("week", "again")
        os.symlink("talk.wav", "other.wav")
        names = ("talk.wav", "./talk.wav", str(tree / "talk.wav"), "other.wav", "again", "week/*")
        assert found(*names) == [
            "talk.wav",
            "again/a.flac",
            "again/b.MP3",
            "week/monday/film.mkv",
            "week/monday/talk.wav",
            "week/notes.txt",
        ]

    def test_what_is_no_file(self):
        assert found("-", "https://a.b/c?d=*", "http://a.b/[c].mp3") == [
            "-",
            "https://a.b/c?d=*",
            "http://a.b/[c].mp3",
        ]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nowhere.wav", "nowhere.wav does not exist: check the path"),
            ("", "'' does not exist"),
            ("nowhere*", "nowhere* matches no file: check the pattern"),
            ("none", "none holds no recordings; --recursive looks in its folders, too"),
        ],
    )
    def test_failures_do_not_stop_the_rest(self, tree, name, message):
        result = find_inputs([name, "talk.wav"])
        assert [each.source for each in result.inputs] == ["talk.wav"]
        ((source, error),) = result.failures
        assert source == name
        assert message in str(error)

    def test_nor_those_of_a_folder_or_pattern(self, tree):
        os.symlink("gone.wav", "week/aa.wav")
        for name in ("week", "w*"):
            result = find_inputs([name, "none", "talk.wav"])
            assert [i.source for i in result.inputs] == ["week/a.flac", "week/b.MP3", "talk.wav"]
            assert [name for name, _ in result.failures] == ["week/aa.wav", "none"]

    def test_a_folder_that_may_not_be_read(self, tree, monkeypatch):
        scan = os.scandir

        def forbidden(path):
            if "monday" in os.fspath(path):
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", forbidden)
        result = find_inputs(["week", "week/monday"], recursive=True)
        assert [i.source for i in result.inputs] == ["week/a.flac", "week/b.MP3"]
        assert [(name, str(e)[:9]) for name, e in result.failures] == [
            ("week/monday", "[Errno 13")
        ] * 2

    def test_no_hint_at_what_is_done_already(self, tree):
        ((_, error),) = find_inputs(["none"], recursive=True).failures
        assert str(error) == "none holds no recordings"
