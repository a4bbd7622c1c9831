"""Which files become of many recordings: names, what a failure stops, Ctrl-C."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import commands
import pytest
from commands import files, touch
from conftest import DATA

from mlx_speech.cli import transcribe_options
from mlx_speech.cli.inputs import Input
from mlx_speech.cli.outputs import default_names, plan, write_files
from mlx_speech.cli.transcribe import main
from mlx_speech.errors import InputError
from mlx_speech.transcription import pipeline
from mlx_speech.transcription.transcript import TranscriptionDelta

AUDIO = DATA / "audio"
GATE = AUDIO / "flite_08.flac"
DIGITS = AUDIO / "espeak_00.flac"
SAID = {GATE: "unlock the back gate\n", DIGITS: "eight three seven seven\n"}


@pytest.fixture
def cli(monkeypatch, capsys):
    return commands.Caller(main, monkeypatch, capsys)


class TestNoOutputIsShared:
    """Several inputs that end up in one file is a complaint about other programs."""

    def test_for_real(self, tmp_path):
        for name, source in (("a", GATE), ("b", DIGITS)):
            (tmp_path / name).mkdir()
            shutil.copy(source, tmp_path / name / "talk.flac")
        sources = [tmp_path / "a" / "talk.flac", tmp_path / "b" / "talk.flac"]
        status, out, _ = commands.run("transcribe", *sources, "-o", tmp_path / "out")
        assert (status, out) == (0, "")
        assert files(tmp_path / "out") == ["a/talk.txt", "b/talk.txt"]
        for name, source in (("a", GATE), ("b", DIGITS)):
            assert (tmp_path / "out" / name / "talk.txt").read_text() == SAID[source]

    def test_folders_keep_their_folders(self, cli, transcribed):
        touch("week/x.wav", "week/mon/x.wav", "week/tue/x.wav")
        assert cli("-r", "week", "-o", "out", "-f", "txt,json")[0] == 0
        assert files("out") == [
            f"{name}.{ending}" for name in ("mon/x", "tue/x", "x") for ending in ("json", "txt")
        ]
        for name in ("mon/x", "tue/x", "x"):
            said = f"first of week/{name}.wav\nsecond of week/{name}.wav\n"
            assert Path("out", f"{name}.txt").read_text() == said

    def test_a_template(self, cli, transcribed):
        touch("a/x.wav", "b/x.wav")
        assert cli("a", "b", "--output-name", "{parent} {stem}")[0] == 0
        assert files() == ["a x.txt", "a/x.wav", "b x.txt", "b/x.wav"]
        status, _, err = cli("a", "b", "--output-name", "{stem}", "--overwrite")
        assert status == 2
        assert "x.txt would be written for both a/x.wav and b/x.wav" in err

    def test_fields_of_a_template(self, cli, transcribed):
        touch("x.wav")
        options = ("--task", "translate", "--target-language", "French", "--model", "some/model-2b")
        assert cli("x.wav", *options, "--output-name", "{stem}.{language}.{task}.{model}")[0] == 0
        assert files() == ["x.fr.translate.model-2b.txt", "x.wav"]

    def test_a_recording_is_not_overwritten(self, cli, transcribed):
        Path("x.txt").write_text("odd, but a recording")
        status, _, err = cli("x.txt", "-o", ".", "--overwrite")
        assert status == 1
        assert "x.txt is a recording itself, which stays as it is" in err
        assert Path("x.txt").read_text() == "odd, but a recording"
        assert not transcribed

    def test_the_same_one_twice(self, cli, transcribed):
        touch("x.wav")
        status, out, err = cli("x.wav", "./x.wav", "*.wav")
        assert (status, out, err) == (0, "first of x.wav\nsecond of x.wav\n", "")


class TestFormats:
    @pytest.mark.parametrize(
        ("options", "endings"),
        [
            (("-f", "srt", "-f", "vtt"), "srt vtt"),
            (("-f", "json,srt", "-f", "json"), "json srt"),
            (("-f", "all"), "json srt tsv txt vtt"),
            (("-o", "."), "txt"),
            (("--output-name", "{stem}"), "txt"),
        ],
    )
    def test_several(self, cli, transcribed, options, endings):
        touch("x.wav")
        assert cli("x.wav", *options)[:2] == (0, "")
        assert files() == sorted(["x.wav", *(f"x.{ending}" for ending in endings.split())])

    def test_all_or_none(self, cli, transcribed, monkeypatch):
        touch("x.wav")

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setitem(transcribe_options.FORMATS, "json", full)
        assert cli("x.wav", "-f", "all")[0] == 1
        assert files() == ["x.wav"]

    def test_subtitles(self, cli, transcribed):
        touch("x.wav")
        assert cli("x.wav", "-f", "srt", "--max-line-width", 10)[0] == 0
        assert "first of\nx.wav" in Path("x.srt").read_text()


class TestFailures:
    """That a failed file leaves the exit status 0 is a complaint about other programs."""

    def test_for_real(self, tmp_path):
        (tmp_path / "bad.wav").write_text("no audio" * 99)
        status, out, err = commands.run("transcribe", tmp_path / "bad.wav", "nowhere.wav", GATE)
        assert (status, out) == (1, SAID[GATE])
        assert err.count("error: ") == 2
        assert "1 of 3 done (0:00:02 of audio" in err
        assert err.endswith(f"2 failed\nfailed: nowhere.wav, {tmp_path / 'bad.wav'}\n")

    def test_the_rest_is_done(self, cli, transcribed):
        touch("a.wav", "bad.wav", "c.wav")
        status, _, err = cli("nowhere.wav", "nothing*", "*.wav", "-o", "out")
        assert status == 1
        assert files("out") == ["a.txt", "c.txt"]
        assert err.splitlines()[:3] == [
            "error: nowhere.wav does not exist: check the path",
            "error: nothing* matches no file: check the pattern",
            "error: bad.wav is damaged",
        ]
        assert err.splitlines()[3].startswith("2 of 5 done (0:00:20 of audio, ")
        assert err.splitlines()[4:] == ["failed: nowhere.wav, nothing*, bad.wav"]

    def test_quiet_says_only_errors(self, cli, transcribed):
        touch("a.wav", "bad.wav")
        status, _, err = cli("a.wav", "bad.wav", "--quiet")
        assert (status, err) == (1, "error: bad.wav is damaged\n")

    def test_empty_folder(self, cli, transcribed):
        Path("empty").mkdir()
        status, _, err = cli("empty")
        assert (status, err) == (
            1,
            "error: empty holds no recordings; --recursive looks in its folders, too\n",
        )


class TestInterrupted:
    def test_what_is_finished_is_kept(self, cli, transcribed, monkeypatch):
        touch("a.wav", "b.wav", "c.wav")
        whole = pipeline.transcribe

        def interrupted(source, model, **options):
            if source == "b.wav":
                options["progress"](754.0, 3600.0)
                raise KeyboardInterrupt
            return whole(source, model, **options)

        monkeypatch.setattr(pipeline, "transcribe", interrupted)
        status, _, err = cli("a.wav", "b.wav", "c.wav", "-o", "out")
        assert status == 130
        assert err.startswith("interrupted at 0:12:34 of 1:00:00 in b.wav: 1 of 3 done (")
        assert err.endswith("x real time); --resume goes on from there\n")
        assert files("out") == ["a.txt"]

    def test_in_a_terminal(self, tmp_path):
        """For real: Ctrl-C while the second one is transcribed, then --resume."""
        shutil.copy(GATE, tmp_path / "a.flac")
        shutil.copy(AUDIO / "long.flac", tmp_path / "b.flac")
        options = (tmp_path, "-o", tmp_path / "out", "--chunk-duration", 9, "--min-silence", 0.4)
        with commands.Terminal("transcribe", *options) as terminal:
            terminal.expect("[2/2]", "real time")
            terminal.send(b"\x03")
            assert terminal.wait() == 130
            assert "interrupted at" in terminal.shown
            assert "1 of 2 done" in terminal.shown
        assert files(tmp_path / "out") == ["a.txt"]
        before = (tmp_path / "out" / "a.txt").stat().st_mtime_ns
        status, _, err = commands.run("transcribe", *options, "--resume")
        assert status == 0
        assert "1 skipped" in err
        assert files(tmp_path / "out") == ["a.txt", "b.txt"]
        assert (tmp_path / "out" / "a.txt").stat().st_mtime_ns == before


class TestPlot:
    def test_for_real(self, cli, tmp_path):
        pytest.importorskip("matplotlib")
        path = tmp_path / "gate.png"
        assert cli(GATE, "--plot", path) == (0, SAID[GATE], "")
        assert path.read_bytes().startswith(b"\x89PNG")
        status, _, err = cli(GATE, "--plot", path)
        assert (status, err) == (
            1,
            f"error: {GATE}: {path} exists already; --overwrite replaces it\n",
        )
        assert cli(GATE, "--plot", path, "--resume")[2] == "0 of 1 done, 1 skipped\n"

    def test_what_is_drawn(self, cli, transcribed, monkeypatch):
        drawn = []

        def plot_transcript(path, read, rate, transcript, *, overwrite):
            drawn.append((path, read(0, rate).size, transcript.text))
            path.write_text("picture")

        monkeypatch.setattr("mlx_speech.output.plotting.check_plot", lambda path: None)
        monkeypatch.setattr("mlx_speech.output.plotting.plot_transcript", plot_transcript)
        shutil.copy(GATE, "a.flac")
        shutil.copy(DIGITS, "b.flac")
        Path("drawn").mkdir()
        assert cli("a.flac", "b.flac", "-o", "out", "--plot", "drawn/{stem}.png")[0] == 0
        assert [(str(path), size) for path, size, *_ in drawn] == [
            ("drawn/a.png", 16000),
            ("drawn/b.png", 16000),
        ]
        assert drawn[0][2].startswith("first of a.flac")
        assert files("out") == ["a.txt", "b.txt"]

    def test_without_matplotlib(self, cli, transcribed, monkeypatch):
        """It is missed before any work is done."""
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        touch("a.wav")
        status, out, err = cli("a.wav", "--plot", "a.png")
        assert (status, out) == (1, "")
        assert "pip install 'mlx-speech[plot]'" in err
        assert not transcribed

    def test_a_picture_that_fails_costs_no_text(self, cli, transcribed, monkeypatch):
        def plot_transcript(*args, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("mlx_speech.output.plotting.check_plot", lambda path: None)
        monkeypatch.setattr("mlx_speech.output.plotting.plot_transcript", plot_transcript)
        shutil.copy(GATE, "a.flac")
        status, _, err = cli("a.flac", "-f", "txt", "--plot", "a.png")
        assert (status, err) == (1, "error: a.flac: No space left on device\n")
        assert files() == ["a.flac", "a.txt"]


class TestStream:
    @pytest.fixture
    def streamed(self, cli, transcribed, monkeypatch):
        def stream(source, model, **options):
            whole = pipeline.transcribe(source, model, **options)
            for index, segment in enumerate(whole.segments):
                for word in segment.text.split(" "):
                    space = " " if index or word != "first" else ""
                    yield TranscriptionDelta(space + word, None)
                yield TranscriptionDelta("", segment)
            return whole

        monkeypatch.setattr(pipeline, "stream_transcribe", stream)
        touch("a.wav")

    def test_a_line_for_each_segment(self, cli, streamed):
        assert (
            cli("a.wav", "--stream") == cli("a.wav") == (0, "first of a.wav\nsecond of a.wav\n", "")
        )

    def test_to_files_as_well(self, cli, streamed):
        status, out, _ = cli("a.wav", "--stream", "-f", "txt")
        assert (status, out) == (0, "first of a.wav\nsecond of a.wav\n")
        assert Path("a.txt").read_text() == out

    def test_a_line_that_is_interrupted_is_ended(self, cli, transcribed, monkeypatch):
        def stream(source, model, **options):
            yield TranscriptionDelta("first", None)
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "stream_transcribe", stream)
        touch("a.wav")
        status, out, err = cli("a.wav", "--stream")
        assert (status, out) == (130, "first\n")
        assert err == "interrupted in a.wav: 0 of 1 done\n"


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


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_files({path: "今日は\n"}, overwrite=False)
    assert path.read_bytes() == "今日は\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_files({path: "x" * 100000 + "\ud800"}, overwrite=True)
    assert path.read_text(encoding="utf-8") == "今日は\n"
    assert list(tmp_path.iterdir()) == [path]
