"""Who speaks, and the times that a model itself tells, on the command line."""

from __future__ import annotations

import json

import pytest
from commands import Caller, one_line
from conftest import DATA
from small_plus import make_plus

from mlx_speech import Segment, Transcript
from mlx_speech.cli.progress import clock
from mlx_speech.cli.transcribe import main
from mlx_speech.cli.transcribe_run import print_deltas
from mlx_speech.transcription import pipeline
from mlx_speech.transcription.transcript import TranscriptionDelta

GATE = DATA / "audio" / "flite_08.flac"


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    return make_plus(tmp_path_factory.mktemp("plus") / "plus")


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["--word-timestamps", GATE], "ctc"),
        (["--word-ti", GATE], "ctc"),
        ([GATE, "--word-timestamps"], "ctc"),
        (["--word-timestamps", "ctc", GATE], "ctc"),
        (["--word-timestamps", "tags", GATE], "tags"),
        (["--word-timestamps=tags", GATE], "tags"),
        ([GATE, "--word-timestamps", "tags"], "tags"),
        (["--word-timestamps", "--", GATE], "ctc"),
    ],
)
def test_word_timestamps_leaves_recordings_alone(cli, transcribed, args, wanted, monkeypatch):
    monkeypatch.setattr("mlx_speech.cli.transcribe_run.Run.check_words", lambda *_: None)
    assert cli(*args)[0] == 0
    ((source, options),) = transcribed
    assert (source, options["word_timestamps"]) == (str(GATE), wanted)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--word-timestamps=talk.wav"], "invalid choice: 'talk.wav'"),
        (["--speakers", "--task", "translate", "--target-language", "fr"], "a translation is not"),
        (["--speakers", "--batch-size", "2"], "leave out --batch-size"),
        (["--speakers", "--draft-acceptance", "0.5"], "--draft-acceptance is for drafts"),
        (["--speakers", "--ctc-only"], "--speakers: the encoder knows no tags, and --ctc-only"),
        (["--word-timestamps", "tags", "--ctc-only"], "--word-timestamps: the encoder knows no"),
        (["--speakers", "--prompt", "do it"], "which --speakers needs; choose one"),
    ],
)
def test_what_no_model_could_do(cli, transcribed, args, message):
    status, out, err = cli(GATE, *args)
    assert (status, out) == (2, "")
    assert message in err
    assert not transcribed


@pytest.mark.parametrize("args", [["--speakers"], ["--word-timestamps", "tags"]])
def test_only_plus_can(cli, args):
    one_line(cli(GATE, GATE, *args), args[0], "these were: Granite Speech 4.1 Plus")


def test_files_and_remarks(cli, monkeypatch, tmp_path):
    """What was irregular is told with --verbose only."""
    segments = [
        Segment(0.0, 1.0, "hello", [1], -0.1, speaker=1, remarks=["the tag '[' is cut off"]),
        Segment(61.0, 62.0, "you", [1], -0.1, speaker=2),
    ]
    made = Transcript("hello you", None, 62.0, segments)
    monkeypatch.setattr(pipeline, "transcribe", lambda *_, **options: made)
    status, out, err = cli(GATE, "--speakers", "--verbose")
    assert (status, out) == (0, "[Speaker 1]: hello\n[Speaker 2]: you\n")
    assert f"flite_08.flac: at {clock(0)}: the tag '[' is cut off\n" in err
    assert cli(GATE, "--speakers") == (0, out, "")
    assert cli(GATE, "--speakers", "-f", "all", "-o", tmp_path)[0] == 0
    assert "<v Speaker 2>you" in (tmp_path / "flite_08.vtt").read_text()
    read = json.loads((tmp_path / "flite_08.json").read_text())
    assert [segment["speaker"] for segment in read["segments"]] == [1, 2]


def test_streamed_lines_begin_with_who_speaks(capsys):
    first, second = (Segment(0, 1, text, [], 0, speaker=n) for text, n in (("a b", 1), ("c", 2)))

    def deltas():
        yield TranscriptionDelta("a", speaker=1)
        yield TranscriptionDelta(" b", first, 1)
        yield TranscriptionDelta(" c", second, 2)
        return "done"

    assert print_deltas(deltas()) == "done"
    assert capsys.readouterr().out == "[Speaker 1]: a b\n[Speaker 2]: c\n"


def test_with_a_model(cli, plus):
    """One without an idea of speakers: what it writes is a text like any other."""
    for more in ([], ["--stream"], ["--word-timestamps", "tags"], ["--word-timestamps"]):
        status, out, err = cli(GATE, "--model", plus, "--speakers", *more)
        assert (status, err) == (0, "")
        assert out.strip()
