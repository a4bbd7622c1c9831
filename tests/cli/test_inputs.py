"""What is named on a command line, and which files become of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_speech.cli.inputs import Input, find_inputs
from mlx_speech.cli.outputs import default_names, plan
from mlx_speech.errors import InputError


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


def names(*sources: str | tuple[str, str]) -> list[str]:
    """Default names for sources, or (source, folder below the named one)."""
    pairs = [s if isinstance(s, tuple) else (s, ".") for s in sources]
    return default_names([Input(source, Path(folder)) for source, folder in pairs])


class TestNames:
    @pytest.mark.parametrize(
        ("sources", "expected"),
        [
            (["a/x.wav"], ["x"]),
            (["a/x.wav", "-"], ["x", "stdin"]),
            (["a/x.y.wav"], ["x.y"]),
            (["a/x.wav", "a/x.mp3"], ["x.wav", "x.mp3"]),
            (["a/x.wav", "b/x.wav"], ["a/x", "b/x"]),
            (["a/x.wav", "b/x.wav", "b/x.mp3"], ["a/x", "b/x", "x.mp3"]),
            (["c/a/x.wav", "d/a/x.wav"], ["c/a/x", "d/a/x"]),
            (["a/x.wav", "b/X.wav"], ["a/x", "b/X"]),
            (["a/\u00e9.wav", "b/e\u0301.wav"], ["a/\u00e9", "b/e\u0301"]),
            (["a/stdin.wav", "-"], ["stdin.wav", "stdin"]),
            ([("w/mon/x.wav", "mon"), ("w/x.wav", ".")], ["mon/x", "x"]),
            ([("w/mon/x.wav", "mon"), ("v/mon/x.wav", "mon")], ["w/mon/x", "v/mon/x"]),
            (["http://h/a/talk%201.mp3?key=1"], ["talk 1"]),
            (["http://h/x.mp3", "http://g/x.mp3"], ["h/x", "g/x"]),
            (["http://h/..%2f..%2fx.mp3"], [".._.._x"]),
            (["http://h/../../x.mp3", "http://g/x.mp3"], ["h/x", "g/x"]),
            (["https://me:secret@h"], ["h"]),
            (["http://[::1", "http://"], ["[::1", "address"]),
        ],
    )
    def test_as_much_of_the_path_as_tells_them_apart(self, sources, expected):
        assert names(*sources) == expected

    def test_files_of_all_formats(self):
        inputs = [Input("a/x.wav"), Input("b/x.wav")]
        jobs = plan(inputs, ["txt", "srt"], Path("out"))
        assert jobs[0].files == {"txt": Path("out/a/x.txt"), "srt": Path("out/a/x.srt")}
        assert jobs[1].files == {"txt": Path("out/b/x.txt"), "srt": Path("out/b/x.srt")}
        assert jobs[0].plot is None

    def test_names_of_ones_own_keep_the_folders_between(self):
        inputs = [Input("w/mon/x.wav", Path("mon")), Input("w/x.wav")]
        jobs = plan(inputs, ["txt"], Path("out"), lambda source: "n", lambda source: Path(source))
        assert [job.targets for job in jobs] == [
            [Path("out/mon/n.txt"), Path("w/mon/x.wav")],
            [Path("out/n.txt"), Path("w/x.wav")],
        ]

    def test_no_two_share_a_file(self):
        """Nor names that macOS takes for one."""
        inputs = [Input("a.wav"), Input("b.wav")]
        own = {"a.wav": "\u00c9x", "b.wav": "e\u0301X"}
        message = r"for both a.wav and b.wav; .* \{parent\} and \{stem\}"
        with pytest.raises(InputError, match=message):
            plan(inputs, ["txt"], Path(), own.get)
        with pytest.raises(InputError, match=message):
            plan(inputs, [], Path(), plot_name=lambda source: Path("pictures", own[source]))

    def test_of_one_folder_and_one_name(self):
        """Where case does not count, they could not be told apart."""
        with pytest.raises(InputError, match=r"x.wav.*X.wav"):
            plan([Input("a/x.wav"), Input("a/X.wav")], ["txt"], Path())
