"""What the command lines share: version, completion, standard streams however they are."""

from __future__ import annotations

import os
import subprocess

import commands
import pytest
from conftest import DATA

import mlx_speech

GATE = DATA / "audio" / "flite_08.flac"
MODULES = ["transcribe", "generate", "chat"]


@pytest.mark.parametrize("module", MODULES)
def test_version(module):
    assert commands.run(module, "--version") == (0, f"mlx_speech {mlx_speech.__version__}\n", "")


class TestCompletion:
    def complete(self, tmp_path, module, *words):
        """What bash offers for the last of the words."""
        script = tmp_path / "completion"
        status, text, _ = commands.run(module, "--print-completion", "bash")
        assert status == 0
        script.write_text(text)
        name = f"mlx-speech-{module}"
        code = (
            'compopt() { :; }; . "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
            f"$(complete -p {name} | sed 's/.*-F \\([^ ]*\\).*/\\1/') {name}; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", code, "bash", str(script), name, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert not done.stderr
        return done.stdout.split()

    @pytest.mark.parametrize("module", MODULES)
    def test_options(self, tmp_path, module):
        assert self.complete(tmp_path, module, "--top") == ["--top-p"] + ["--top-k"] * (
            module != "transcribe"
        )

    def test_files_and_folders(self, tmp_path):
        (tmp_path / "talks").mkdir()
        (tmp_path / "talk.wav").touch()
        assert sorted(self.complete(tmp_path, "transcribe", "ta")) == ["talk.wav", "talks"]
        assert self.complete(tmp_path, "transcribe", "-o", "ta") == ["talks"]
        assert self.complete(tmp_path, "transcribe", "--dtype", "bf") == ["bfloat16"]

    @pytest.mark.parametrize(
        ("shell", "sign"), [("zsh", "#compdef mlx-speech-transcribe"), ("fish", "complete -c")]
    )
    def test_other_shells(self, shell, sign):
        status, text, err = commands.run("transcribe", "--print-completion", shell)
        assert (status, err) == (0, "")
        assert sign in text
        assert "mlx-speech-transcribe" in text
        assert "highlight-words" in text

    def test_unknown_shell(self):
        status, _, err = commands.run("transcribe", "--print-completion", "csh")
        assert status == 2
        assert "choose from" in err


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

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a Linux device")
    def test_full_disk(self):
        status, _, err = self.shell("CLI >/dev/full")
        assert status == 1
        assert err.count("\n") == 1
        assert "No space left on device" in err
