"""Recordings that several ranks transcribe: all is as of one process."""

from __future__ import annotations

import shutil

import pytest
from commands import Caller
from parallel import AUDIO, SHORT_PARTS, contents, timeless, transcribed

from mlx_speech.cli.transcribe import main
from mlx_speech.transcription import parts

GATE, DIGITS = AUDIO / "flite_08.flac", AUDIO / "espeak_00.flac"


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


def check_same(results, one: tuple[int, str, str]) -> None:
    """Rank 0 said what one process says, and the others nothing."""
    (status, printed, said), *others = results
    assert (status, printed, timeless(said)) == (one[0], one[1], timeless(one[2]))
    assert others == [(0, "", "")] * len(others)


def test_seven_for_two(cli, tmp_path):
    """Files byte for byte, among them those of recordings that fail; what is said, line by line."""
    names = ("espeak_00", "espeak_04", "festival_13", "flite_08", "flite_09")
    recordings = [AUDIO / f"{name}.flac" for name in names]
    (tmp_path / "notes.wav").write_text("no sound at all\n" * 50)
    recordings[2:2] = [tmp_path / "notes.wav", AUDIO / "silence.flac"]
    options = ["nowhere.wav", "-f", "all", "--word-timestamps", "--verbose", "-o"]
    one = cli(*recordings, *options, tmp_path / "one")
    results = transcribed([*recordings, *options, tmp_path / "many"], 2, tmp_path)
    check_same([(s, p, e.replace("/many/", "/one/")) for s, p, e in results], one)
    assert one[0] == 1
    assert one[2].count("error: ") == 2
    assert len(contents(tmp_path / "many")) == 30
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_one_for_two(cli, tmp_path):
    """On standard output."""
    check_same(transcribed([GATE], 2, tmp_path), cli(GATE))


def test_more_than_one_text_on_standard_output(cli, tmp_path):
    """In the order in which they were named, though others are done before the first."""
    args = [AUDIO / "festival_13.flac", "nowhere.wav", GATE, DIGITS]
    check_same(transcribed(args, 2, tmp_path), cli(*args))


@pytest.mark.slow
def test_a_long_recording_in_parts(cli, tmp_path, monkeypatch):
    """All three ranks have one."""
    monkeypatch.setattr(parts, "SECTION_FRAMES", 1500)
    monkeypatch.setattr(parts.Halo, "least_part", 10.0)
    code = f"""
from mlx_speech.transcription import pipeline
original = pipeline.transcribe_part
def transcribe_part(source, loaded, part, **options):
    open(f"{tmp_path}/part-{{part.begin}}-{{part.end}}", "x").write(str(rank))
    return original(source, loaded, part, **options)
pipeline.transcribe_part = transcribe_part
"""
    options = [AUDIO / "long.flac", GATE, "-f", "json,srt", "--word-timestamps", "-o"]
    one = cli(*options, tmp_path / "one")
    check_same(transcribed([*options, tmp_path / "many"], 3, tmp_path, SHORT_PARTS + code), one)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    done = {path.name: path.read_text() for path in tmp_path.glob("part-*")}
    assert len(done) == 3
    assert set(done.values()) == {"0", "1", "2"}


def test_parts_without_text_of_a_film_with_other_tracks(tmp_path):
    """All of it is transcribed once more, as one process would for the text of another track."""
    code = """
from mlx_speech.transcription import pipeline
from mlx_speech.transcription.part_results import PartResult
from mlx_speech.transcription.transcript import Segment, Transcript
def transcribe_part(source, *args, **options):
    return PartResult([], [], None, 101.0, 0.5, [], 1, "long" in source)
def transcribe(source, *args, **options):
    text = f"all of {source[-9:]}"
    return Transcript(text, None, 101.0, [Segment(0.0, 1.0, text, [], 0.0)])
pipeline.transcribe_part, pipeline.transcribe = transcribe_part, transcribe
"""
    shutil.copy(AUDIO / "long.flac", tmp_path / "quiet.flac")
    args = [tmp_path / "quiet.flac", AUDIO / "long.flac"]
    first, other = transcribed(args, 2, tmp_path, SHORT_PARTS + code)
    assert first[:2] == (0, "all of long.flac\n")
    assert "quiet.flac: no text: " in first[2]
    assert other == (0, "", "")


def test_resume_and_overwrite(cli, tmp_path):
    recordings = [GATE, DIGITS, AUDIO / "short.wav"]
    (tmp_path / "flite_08.txt").write_text("precious\n")
    args = [*recordings, "-o", tmp_path, "--verbose"]
    shutil.copytree(tmp_path, tmp_path.parent / "one")
    for more in (["--resume"], [], ["--overwrite"]):
        one = cli(*recordings, "-o", tmp_path.parent / "one", "--verbose", *more)
        results = transcribed([*args, *more], 2, tmp_path.parent)
        told = one[2].replace(str(tmp_path.parent / "one"), str(tmp_path))
        check_same(results, (*one[:2], told))
        assert contents(tmp_path) == contents(tmp_path.parent / "one")


@pytest.mark.parametrize(
    "args", [["--model", "./nowhere"], ["--punctuate"], ["-o", "/proc/nowhere"]]
)
def test_what_fails_alike_everywhere(cli, tmp_path, args):
    """Is told once."""
    one = cli(GATE, DIGITS, *args)
    assert one[0] == 1
    check_same(transcribed([GATE, DIGITS, *args], 2, tmp_path), one)


@pytest.mark.parametrize("args", [["-"], ["--live"], [GATE, "--stream"]])
def test_what_is_for_one_process(monkeypatch, cli, args):
    monkeypatch.setenv("MLX_RANK", "1")
    monkeypatch.setattr("mlx_speech.cli.common.leave", lambda status: None)
    status, printed, said = cli(*args)
    assert (status, printed, said.count("\n")) == (2, "", 1)
    word = next(str(arg) for arg in args if str(arg).startswith("-"))
    assert said == f"error: rank 1: {word} is for one process: leave it out, or mlx.launch\n"


class TestPlot:
    def test_drawn_by_rank_0(self, tmp_path):
        pytest.importorskip("matplotlib")
        args = [GATE, DIGITS, "--plot", tmp_path / "{stem}.png"]
        assert transcribed(args, 2, tmp_path)[0][:2] == (
            0,
            "unlock the back gate\neight three seven seven\n",
        )
        assert {path.name for path in tmp_path.glob("*.png")} == {"flite_08.png", "espeak_00.png"}
