"""Messages: one line each, whatever they quote, and as much of them as asked for."""

from __future__ import annotations

import shutil
import warnings

import pytest
from commands import Caller
from conftest import DATA, DECODERS, TINY, edit_json

from convert.cli import main as convert
from mlx_speech.cli.chat import main as chat
from mlx_speech.cli.common import Parser, add_console_options, run_command
from mlx_speech.cli.console import Console
from mlx_speech.cli.generate import main as generate
from mlx_speech.cli.transcribe import main as transcribe

GATE = DATA / "audio" / "flite_08.flac"
MAINS = {"transcribe": transcribe, "chat": chat, "generate": generate, "convert": convert}
LONG = "x" * 100_000
#: as other libraries and terminals write, and what turns a line around
ODD = "one\ntwo\x1b[31m red\x07 \u202eback"


def told(err: str) -> str:
    """The last line, after checking that it and all before it are no longer than they may be."""
    lines = err.splitlines()
    assert max(map(len, lines)) <= 340  # with the name of the command line
    assert all(line.isprintable() for line in lines)
    return lines[-1]


class TestWhatIsQuoted:
    @pytest.mark.parametrize(
        "value", [LONG, ODD, "two words " * 9999], ids=["long", "odd", "words"]
    )
    @pytest.mark.parametrize(
        ("module", "args", "ending"),
        [
            ("transcribe", ["VALUE"], ""),
            ("transcribe", [GATE, "-f", "VALUE"], "(choose from txt, srt, vtt, tsv, json, all)"),
            ("transcribe", [GATE, "--num-beams", "VALUE"], ""),
            ("transcribe", [GATE, "--model", "./VALUE"], ""),
            ("transcribe", [GATE, "--language", "VALUE"], ""),
            ("transcribe", [GATE, "--output-name", "VALUE{stem"], "{{ or }}"),
            ("transcribe", [GATE, "-o", "VALUE"], ""),
            ("transcribe", [GATE, "--VALUE"], ""),
            ("generate", ["-p", "x", "--model", "./VALUE"], ""),
            ("generate", ["-p", "x", "--draft-model", "./VALUE"], ""),
            ("chat", ["--model", "./VALUE"], ""),
            ("convert", ["--model", "./VALUE"], ""),
            ("convert", ["--model", TINY, "-q", "--q-bits", "VALUE"], ""),
            ("convert", ["--model", TINY, "--upload-repo", "VALUE"], ""),
        ],
    )
    def test_one_line(self, monkeypatch, capsys, tmp_path, module, args, ending, value):
        monkeypatch.chdir(tmp_path)
        cli = Caller(MAINS[module], monkeypatch, capsys)
        status, _, err = cli(*(str(arg).replace("VALUE", value) for arg in args))
        if args[-2:] == ["-o", "VALUE"] and value == ODD:
            assert status == 0  # that is a name for a folder
            return
        assert status in (1, 2)
        assert told(err).endswith(ending)
        assert "error: " in err

    @pytest.mark.parametrize("command", ["VALUE", "/VALUE", "/load VALUE", "/audio VALUE"])
    def test_of_a_chat(self, monkeypatch, capsys, command):
        cli = Caller(chat, monkeypatch, capsys)
        status, _, err = cli(stdin=command.replace("VALUE", LONG) + "\n")
        assert status == 1
        assert told(err).startswith("error: ")

    def test_of_a_file(self, monkeypatch, capsys, tmp_path):
        """What a model says of itself."""
        folder = shutil.copytree(DECODERS / "llama", tmp_path / "model")
        for value in (LONG, ODD):
            edit_json(folder / "config.json", model_type=value)
            for module, args in (("generate", ("-p", "x")), ("convert", ())):
                cli = Caller(MAINS[module], monkeypatch, capsys)
                status, out, err = cli("--model", folder, *args)
                assert (status, out) == (1, "")
                assert told(err).startswith("error: ")


class TestWarnings:
    def test_are_lines_like_the_others(self, capsys):
        """Without the place in the source, which is nothing to a user."""

        def work(args, console, usage) -> int:
            warnings.simplefilter("default")
            warnings.warn(f"{ODD} {LONG}", stacklevel=1)
            return 0

        parser = Parser(prog="x")
        add_console_options(parser)
        assert run_command(parser, lambda parser, args: None, work, []) == 0
        line = told(capsys.readouterr().err)
        assert line.startswith("warning: one two red\\x07 \\u202eback xxx")
        assert run_command(parser, lambda parser, args: None, work, ["--quiet"]) == 0
        assert capsys.readouterr().err == ""

    @pytest.mark.filterwarnings("always")
    def test_of_a_checkpoint(self, monkeypatch, capsys, tmp_path):
        folder = shutil.copytree(DECODERS / "llama", tmp_path / "model")
        edit_json(folder / "config.json", tie_word_embeddings=True)
        cli = Caller(convert, monkeypatch, capsys)
        plan = ("--model", folder, "--mlx-path", tmp_path / "out", "--dry-run")
        status, _, err = cli(*plan)
        assert status == 0
        assert err.startswith("warning: config.json says tie_word_embeddings, but lm_head.weight")
        assert cli(*plan, "--quiet")[::2] == (0, "")


def test_before_the_options_are_known(capsys):
    console = Console()
    console.note("said")
    console.detail("not said")
    assert console.error(OSError(28, "No space left on device", "a.txt")) == 1
    assert capsys.readouterr().err == "said\nerror: a.txt: No space left on device\n"
