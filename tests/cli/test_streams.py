"""Standard streams however they are: closed, full, with a byte order mark, for other encodings."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import commands
import pytest
from conftest import DATA, DECODERS

from mlx_speech.cli.chat import HELP
from mlx_speech.cli.chat import main as chat
from mlx_speech.cli.generate import main as generate
from mlx_speech.cli.streams import read_lines

GATE = DATA / "audio" / "flite_08.flac"
LLAMA = DECODERS / "llama"


class TestStandardStreams:
    def shell(self, command: str, **env: str) -> tuple[int, str, str]:
        """A line in which CLI stands for the command line with one recording."""
        return commands.shell(command.replace("CLI", f"CLI {GATE}"), "transcribe", **env)

    def test_an_encoding_without_the_characters(self):
        status, out, err = self.shell(
            "CLI --task translate --target-language fr", PYTHONIOENCODING="ascii"
        )
        assert (status, err) == (0, "")
        assert out == "d\\xe9verrouille le portail arri\\xe8re\n"

    def test_closed_output_is_a_failure(self):
        status, _, err = self.shell("CLI >&-")
        assert status == 1
        assert err == "error: standard output is closed; open it, or give -o DIR\n"

    def test_closed_output_does_not_matter_to_files(self, tmp_path):
        assert self.shell(f"CLI -o {tmp_path} >&-") == (0, "", "")
        assert (tmp_path / "flite_08.txt").read_text() == "unlock the back gate\n"

    def test_closed_input(self):
        assert self.shell("CLI <&-") == (0, "unlock the back gate\n", "")
        status, out, err = self.shell("CLI - <&-")
        assert (status, out) == (1, "unlock the back gate\n")
        assert err.startswith("error: standard input is empty")

    def test_closed_error(self):
        """Messages do not end up on standard output instead."""
        assert self.shell("CLI nowhere.wav 2>&-") == (1, "unlock the back gate\n", "")
        assert self.shell("CLI <&- 2>&-") == (0, "unlock the back gate\n", "")

    def test_closed_output_and_what_prints_and_ends(self):
        for option in ("--list-models", "--print-completion bash"):
            status, _, err = self.shell(f"CLI {option} >&-")
            assert (status, err) == (1, "error: standard output is closed; open it\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a Linux device")
class TestFullDisk:
    @pytest.mark.parametrize(
        "command",
        [
            f"transcribe {GATE} {GATE}",
            f"transcribe {GATE} --stream",
            "transcribe --list-models",
            "transcribe --help",
            "transcribe --version",
            "transcribe --print-completion bash",
            "generate -p hello",
            "chat",
            f"convert --model {LLAMA} --dry-run --quiet",
        ],
    )
    def test_of_standard_output(self, command):
        """One line, also where Python would tell what it ignored at its end."""
        module, _, arguments = command.partition(" ")
        result = commands.shell(f"echo hello | CLI {arguments} >/dev/full", module)
        assert result == (1, "", "error: standard output: No space left on device\n")

    def test_of_standard_output_without_a_buffer(self):
        result = commands.shell("CLI --help >/dev/full", "transcribe", PYTHONUNBUFFERED="1")
        assert result == (1, "", "error: standard output: No space left on device\n")

    def test_of_standard_error(self, tmp_path):
        """Messages are lost, and nothing else."""
        line = f"CLI {GATE} --verbose --max-tokens 2 2>/dev/full"
        assert commands.shell(line, "transcribe") == (0, "unl\n", "")
        line = f"CLI {GATE} nowhere.wav --verbose -o {tmp_path} 2>/dev/full"
        assert commands.shell(line, "transcribe") == (1, "", "")
        assert (tmp_path / "flite_08.txt").read_text() == "unlock the back gate\n"
        assert commands.shell("CLI --frobnicate 2>/dev/full", "transcribe")[0] == 2

    def test_a_reader_of_messages_that_goes_away(self):
        line = f"(CLI {GATE} nowhere.wav --verbose; echo $?) 2>&1 >&3 3>&- | true"
        assert commands.shell(f"exec 3>&1; {line}", "transcribe")[1] == "unlock the back gate\n1\n"


def test_filtered_standard_error():
    """What MLX's threads say of sockets, in pieces that mix, is left out; all else passes, and what
    Python says with it."""
    program = """
import os, sys
from mlx_speech.cli.ranks import OF_SOCKETS
from mlx_speech.cli.streams import filter_standard_error
filter_standard_error(OF_SOCKETS)
for piece in (
    "[ring] Socket 3 was closed by the peer\\n",
    "[ring] ", "Socket", " ", "[ring] Socket 1", "2", " was closed by the peer", "\\n",
    " was closed by the peer", "\\n", "3 was closed by the peer was closed by the peer\\n", "\\n",
    "terminate called\\n", "12 Socket failed with errno 104\\n", "a socket failed with errno 1\\n",
    "the end",
):
    os.write(2, piece.encode())
os.close(2)
print("error: no", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    lines = ["a socket failed with errno 1", "error: no", "terminate called", "the end"]
    assert sorted(done.stderr.replace("the end", "the end\n").split("\n")) == ["", *lines]


class TestByteOrderMark:
    """What editors put at the beginning of a text is no part of it."""

    def test_of_a_prompt(self, monkeypatch, capsys):
        cli = commands.Caller(generate, monkeypatch, capsys)
        marked = "\ufeffturn on the kitchen light\n"
        for given in (cli(stdin=marked[1:]), cli(stdin=marked), cli("--prompt", marked.strip())):
            assert given == (0, "the kitchen light is on.\n", "")
        commands.one_line(cli(stdin="\ufeff\n"), "the prompt is empty")

    def test_of_messages(self, monkeypatch, capsys):
        """Only at the beginning; and commands are still commands."""
        cli = commands.Caller(chat, monkeypatch, capsys)
        assert cli(stdin="\ufeffgood night\n") == (0, "sleep well.\n", "")
        assert cli(stdin="\ufeff/help\n") == (0, "", f"{HELP}\n")

    def test_of_a_later_line(self, monkeypatch):
        data = "\ufeffone\n\ufefftwo\n".encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert [line.decode() for line in read_lines()] == ["one\n", "\ufefftwo\n"]
