"""What the command lines tell of themselves: version, completion, models, help."""

from __future__ import annotations

import inspect
import re
import subprocess
from importlib import import_module

import commands
import pytest
from conftest import ROOT

import mlx_speech
from mlx_speech.cli.released import RELEASED, list_models

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


class TestModels:
    def test_list(self):
        assert commands.run("transcribe", "--list-models") == (0, list_models(), "")
        assert max(map(len, list_models().splitlines())) <= 80
        for releases in RELEASED.values():
            for repository, gigabytes, notes in releases:
                (line,) = re.findall(rf".* {re.escape(repository)} .*", list_models())
                assert float(re.search(r"([\d.]+) GB", line)[1]) == gigabytes
                assert notes in line

    def test_the_readme_has_them(self):
        readme = (ROOT / "README.md").read_text()
        rows = re.findall(r"^\| `(ibm-granite/[^`]+)` \| ([\d.]+) GB \|", readme, re.MULTILINE)
        granite = RELEASED["Granite Speech"]
        assert rows == [(r.repository, f"{r.gigabytes}") for r in granite]

    def test_the_default_is_the_first(self):
        default = import_module("mlx_speech.transcription.pipeline").DEFAULT_MODEL
        assert RELEASED["Granite Speech"][0].repository == default


class TestHelp:
    def test_one_page(self):
        status, out, _ = commands.run("transcribe", "-h", COLUMNS="80")
        assert status == 0
        assert len(out.splitlines()) <= 72
        groups = re.findall(r"^(\w.*):$", out, re.MULTILINE)
        assert groups == [
            "recordings",
            "model",
            "what to do",
            "long recordings",
            "output",
            "subtitles (srt and vtt)",
            "generation",
            "other",
        ]

    def test_defaults_are_the_librarys(self):
        out = " ".join(commands.run("transcribe", "--help", COLUMNS="80")[1].split())
        parameters = inspect.signature(mlx_speech.transcribe).parameters
        for name in ("chunk_duration", "min_silence", "batch_size", "task"):
            option = re.search(rf"--{name.replace('_', '-')} .*?\(default: (\w+)\)", out)
            default = parameters[name].default
            assert option[1] == (default if name == "task" else f"{default:g}")
