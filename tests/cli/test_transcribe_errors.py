"""What the command line says of wrong input: one line, and the others still get done."""

from __future__ import annotations

import shutil

import pytest
from commands import Caller, one_line, run, shell
from conftest import DATA

from mlx_speech.cli.transcribe import main

AUDIO = DATA / "audio"
GATE = AUDIO / "flite_08.flac"
DIGITS = AUDIO / "espeak_00.flac"


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    return Caller(main, monkeypatch, capsys)


class TestWrongInput:
    def test_missing_file(self, cli):
        one_line(cli("nowhere.wav"), "nowhere.wav")

    def test_not_audio(self, cli, tmp_path):
        (tmp_path / "notes.txt").write_text("these are notes\n" * 50)
        one_line(cli(tmp_path / "notes.txt"), "notes.txt")

    def test_others_still_get_done(self, cli):
        status, out, err = cli(GATE, "nowhere.wav", DIGITS)
        assert (status, out) == (1, "unlock the back gate\neight three seven seven\n")
        assert err.startswith("error: nowhere.wav does not exist")
        assert err.endswith(", 1 failed\nfailed: nowhere.wav\n")

    def test_too_long_for_the_model(self, cli, tiny_with_60_tokens):
        result = cli(AUDIO / "espeak_03.flac", "--model", tiny_with_60_tokens)
        one_line(result, "espeak_03.flac", "4.1 s", "context of 60")

    def test_model_that_is_not_there(self, cli):
        one_line(cli(GATE, "--model", "./nowhere"), "nowhere")

    def test_repository_while_offline(self):
        name = "ibm-granite/granite-speech-3.3-2b"
        one_line(run("transcribe", GATE, "--model", name, HF_HOME="/nil"), name)

    def test_option_that_the_model_cannot_honour(self, cli):
        one_line(cli(GATE, DIGITS, "--punctuate"), "punctuate", "Granite Speech 4.1")

    def test_damaged_model(self, cli, tiny_copy):
        (tiny_copy / "config.json").write_text("{")
        one_line(cli(GATE, "--model", tiny_copy), "config.json")

    def test_a_name_of_two_lines(self, cli, tmp_path):
        name = tmp_path / "first\nsecond.flac"
        one_line(cli(name), "first\\nsecond.flac")
        shutil.copy(GATE, name)
        for words in ("the text was cut off", "exists already"):
            _, _, err = cli(name, "--max-tokens", 2, "-o", tmp_path)
            assert err.count("\n") == 1
            assert words in err

    def test_debug_shows_the_traceback(self, cli):
        status, _, err = cli("nowhere.wav", "--debug")
        assert status == 1
        assert "Traceback" in err

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ((), "required: AUDIO"),
            ((GATE, "--frobnicate"), "unrecognized"),
            ((GATE, "-f", "docx"), "invalid choice"),
            ((GATE, "--stream", "--num-beams", 2), "leave out --num-beams"),
            ((GATE, "-f", "txt,docx"), "invalid choice: 'docx' (choose from txt, srt, "),
            ((GATE, "-f", ""), "invalid choice: ''"),
            ((GATE, "--prompt", "x", "--punctuate"), "leave them out"),
            ((GATE, "--prompt", "x", "--keywords", "y"), "leave them out"),
            ((GATE, "--keywords", " , "), "--keywords has no words in it"),
            ((GATE, "--keywords", "@nowhere.txt"), "cannot read nowhere.txt: No such file"),
            ((GATE, "--keywords", f"@{GATE}"), "flite_08.flac is not UTF-8 text"),
            ((GATE, "--overwrite", "--resume"), "not allowed with"),
            ((GATE, "--resume"), "--resume is for files; it needs -f, -o, --output-name or --plot"),
            ((GATE, "-o", ".", "--output-name", "{sten}"), "unknown field {sten}"),
            ((GATE, "--output-name", ""), "gives '', which is no name for a file"),
            ((GATE, "--output-name", "{stem"), "'{stem' is malformed"),
            ((GATE, "--output-name", "{language}"), "which is not known: give --language"),
            ((GATE, "--plot", "talk.jpg"), "give talk.jpg a name that ends in .png"),
            ((GATE, "--plot", "{sten}.png"), "unknown field {sten}"),
            ((GATE, DIGITS, "--plot", "talk.png"), "talk.png would be written for both"),
            (("-", "--plot", "talk.png"), "standard input (-) cannot be"),
            ((GATE, "--max-line-width", 40), "--max-line-width is for subtitles; it needs -f srt"),
            ((GATE, "-f", "txt", "--highlight-words"), "--highlight-words is for subtitles"),
            ((GATE, "-f", "srt", "--highlight-words"), "add --word-timestamps"),
            ((GATE, "-f", "srt", "--max-line-width", 0), "--max-line-width is 0, but must be"),
            ((GATE, "-f", "srt", "--max-line-count", 2), "without --max-line-width; give both"),
            (("-", "-"), "only once"),
            ((GATE, "--stream", "--batch-size", 2), "leave out --batch-size"),
            ((GATE, "--ctc-only", "--no-draft"), "--no-draft is for the decoder, which --ctc-only"),
            ((GATE, "--ctc-only", "--max-tokens", 9), "--max-tokens is for the decoder"),
            ((GATE, "--ctc-only", "--draft-acceptance", 0.5), "--draft-acceptance is for the"),
            ((GATE, "--ctc-only", "--keywords", "x"), "--keywords is for the decoder"),
            ((GATE, "--ctc-only", "--skip-editor"), "--skip-editor: --ctc-only has no editor"),
            (
                (GATE, "--ctc-only", "--task", "translate", "--target-language", "fr"),
                "--ctc-only writes what was said, and a translation is not",
            ),
            ((GATE, "--batch-size", 0), "--batch-size is 0, but must be an integer, at least 1"),
            (
                (GATE, "--chunk-duration", 0),
                "--chunk-duration is 0.0, but must be a finite number, at least 1",
            ),
            ((GATE, "--min-silence", "nan"), "--min-silence is nan, but must be a finite number"),
            (
                (GATE, "--word-timestamps", "--task", "translate", "--target-language", "fr"),
                "--word-timestamps are of what was said",
            ),
            ((GATE, "--quiet", "--verbose"), "not allowed with"),
            ((GATE, "--max-tokens", 0), "--max-tokens is 0, but must be an integer, at least 1"),
            ((GATE, "--num-beams", 0), "--num-beams is 0"),
            ((GATE, "--temperature", -1), "--temperature is -1.0"),
            ((GATE, "--temperature", "nan"), "--temperature is nan"),
            (
                (GATE, "--temperature", 1, "--top-p", 0),
                "--top-p is 0.0, but must be a finite number, above",
            ),
            ((GATE, "--temperature", 1, "--top-p", 1.5), "--top-p is 1.5"),
            ((GATE, "--temperature", 1, "--seed", -1), "--seed is -1"),
            ((GATE, "--temperature", 1, "--num-beams", 2), "choose one"),
            ((GATE, "--top-p", 0.5), "--top-p is for sampling tokens; it needs --temperature"),
            ((GATE, "--seed", 1, "--temperature", 0), "--seed is for sampling tokens"),
            ((GATE, "--task", "translate"), "--task 'translate' needs --target-language"),
            ((GATE, "--target-language", "fr"), "--target-language goes with --task 'translate'"),
        ],
    )
    def test_usage_errors(self, cli, args, message):
        """Also where the model would take minutes to load, or cannot be loaded."""
        status, out, err = cli(*args, "--model", "./nowhere")
        assert (status, out) == (2, "")
        assert message in err

    def test_nothing_at_all(self, cli):
        status, out, err = cli()
        assert (status, out) == (2, "")
        assert err.endswith("error: the following arguments are required: AUDIO\n")

    def test_reader_that_goes_away(self):
        """`... | head -1` is no reason for a traceback."""
        command = f"CLI {GATE} {DIGITS} {GATE} | head -c 1"
        assert shell(command, "transcribe") == (0, "u", "")
