"""What the command lines share: version, completion, how they end."""

from __future__ import annotations

import signal
import subprocess
import sys

import commands
import mlx.core as mx
import pytest
from commands import environment, one_line, shell
from conftest import DATA, DECODERS, ROOT

import mlx_speech

GATE = DATA / "audio" / "flite_08.flac"
MODULES = ["transcribe", "generate", "chat"]


@pytest.mark.parametrize("module", [*MODULES, "benchmark", "convert", "finetune", "serve"])
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
        assert self.complete(tmp_path, "convert", "--mlx-path", "ta") == ["talks"]

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


class TestSignals:
    """What ends a program from outside: it cleans up as after Ctrl-C."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_while_it_writes(self, tmp_path, number):
        code = (
            "import sys, time\n"
            "from convert.cli import main\n"
            "from convert.source import Source\n"
            "def wait(*args, **options): print('now', flush=True); time.sleep(60)\n"
            "Source.copy_carried = wait\n"
            "sys.exit(main(sys.argv[1:]))"
        )
        arguments = ["--model", DECODERS / "llama", "--mlx-path", tmp_path / "out"]
        command = [sys.executable, "-c", code, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
            assert process.stdout.readline() == "now\n"
            assert list(tmp_path.iterdir())
            process.send_signal(number)
            assert process.communicate() == ("", "")
        assert process.returncode == 128 + number
        assert not list(tmp_path.iterdir())

    def test_while_it_reads(self, tmp_path):
        """Nothing is left of standard input either."""
        command = [sys.executable, "-m", "mlx_speech.transcribe", "-"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        env = environment(TMPDIR=str(tmp_path))
        with subprocess.Popen(command, env=env, **pipes) as process:
            sent = GATE.read_bytes()
            for _ in range(1 + 2**17 // len(sent)):  # more than a pipe holds
                process.stdin.write(sent)
                process.stdin.flush()
            process.send_signal(signal.SIGTERM)
            process.stdin.close()
            assert process.wait() == 143
        assert not [path for path in tmp_path.iterdir() if path.name != "mlx"]

    def test_nohup(self):
        """What is ignored stays so."""
        code = (
            "import os, signal\n"
            "from mlx_speech.cli.common import ended_by_signals\n"
            "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
            "with ended_by_signals(): os.kill(os.getpid(), signal.SIGHUP)\n"
            "print('still here')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "still here\n")


class TestTemporaryFolder:
    """MLX's compiler for the CPU writes to it."""

    @pytest.mark.skipif(mx.metal.is_available(), reason="computes on the GPU")
    @pytest.mark.parametrize("name", ["nowhere", "file"])
    def test_that_cannot_be_written_to(self, tmp_path, name):
        (tmp_path / "file").touch()
        result = shell(f"CLI {GATE} {GATE}", "transcribe", TMPDIR=str(tmp_path / name))
        one_line(result, "could not compile", "set TMPDIR to a folder that can be written to")

    def test_an_error_of_another_kind_is_none_of_it(self, monkeypatch):
        from mlx_speech.cli import generate

        def run(*args):
            raise RuntimeError("[matmul] shapes")

        monkeypatch.setattr(generate, "run", run)
        with pytest.raises(RuntimeError, match="shapes"):
            generate.main(["--prompt", "x"])
