"""What the command lines tell of themselves: version and completion."""

from __future__ import annotations

import subprocess

import commands
import pytest

import mlx_speech

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
