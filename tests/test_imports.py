"""What each command imports: for --help nothing that takes long, and when it runs what it needs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import PATIENCE, environment
from conftest import DATA, DECODERS, ROOT, TINY

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(*extras: str) -> set[str]:
    """Modules that an installation with these extras has us depend on."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in lines}


PIPELINE, LEARNED = "mlx_speech.transcription.pipeline", "mlx_speech.convert.learned"
#: takes long to import: dependencies and what they bring, some of Python's own, some of ours
HEAVY = {
    *declared("mic", "plot", "server", "train", "wyoming"),
    *("PIL", "datasets", "peft", "torch", "transformers", "yaml"),
    *("asyncio", "multiprocessing", "ssl", "unittest"),
    *(PIPELINE, LEARNED, "mlx_speech.cli.parallel", "mlx_speech.distributed.bus"),
    *("mlx_speech.profiling", "mlx_speech.server", "mlx_speech.training.finetune"),
}
MODEL = {"mlx", "numpy", "safetensors"}
TEXT = {*MODEL, "jinja2", "tokenizers"}
SERVER = {
    *("mlx_speech.server", "mlx_speech.distributed.bus", PIPELINE),
    *("asyncio", "multiprocessing", "python_multipart", "ssl"),
    *("starlette", "uvicorn", "websockets"),
}
FILES = {"talk.flac": DATA / "audio" / "espeak_05.flac", "llama": DECODERS / "llama"}
#: what is typed, and what of `HEAVY` it imports. Conversions go on with huggingface_hub's cards,
#: training with mlx-lm, and the benchmark takes long: these are not run
RUNS = {
    "transcribe --list-models": set(),
    "transcribe -f all -o out talk.flac": {*TEXT, "soundfile", PIPELINE},
    "generate -m 2 -p hello": TEXT,
    "chat -m 2": TEXT,
    "convert --dry-run -q --model llama": MODEL,
    "finetune --data bad.jsonl": {*TEXT, "mlx_speech.training.finetune"},
}

#: runs a module or a file as `python -m` does, then writes down what has been imported for it
CODE = """
import os, runpy, sys
before = set(sys.modules)
command = sys.argv.pop(1)
sys.argv[0] = command
try:
    if command.endswith(".py"):
        runpy.run_path(command, run_name="__main__")
    else:
        runpy.run_module(command, run_name="__main__")
finally:
    with open(os.environ["IMPORTED"], "w") as file:
        print(*sorted({*sys.modules} - before), sep="\\n", file=file)
"""


class Watched:
    """Runs commands in a folder, and knows what the last one has imported."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._list = folder / "imported"

    def start(self, command: str, *args: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", CODE, command, *args],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(IMPORTED=str(self._list), PYTHONPATH=str(ROOT), COLUMNS="80"),
        )

    def run(self, command: str, *args: str, stdin: str = "") -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        with self.start(command, *args) as process:
            out, err = process.communicate(stdin, timeout=PATIENCE)
        return process.returncode, out, err

    @property
    def imported(self) -> set[str]:
        return set(self._list.read_text().split())


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def commands() -> list[str]:
    """All that there are: those that are installed, `convert` of a clone, and the examples."""
    modules = {place.partition(":")[0] for place in PROJECT["scripts"].values()}
    modules = {module.removesuffix(".cli") for module in modules}
    return sorted({*modules, "convert", *map(str, (ROOT / "examples").glob("*.py"))})


@pytest.mark.parametrize("command", commands(), ids=lambda name: os.path.basename(name))
def test_help(watched, command):
    """No package at all but ours, and no line is too long for a terminal."""
    status, out, err = watched.run(command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("usage: ")
    assert max(map(len, out.splitlines())) <= 80
    packages = {name.partition(".")[0] for name in watched.imported}
    assert packages - {*sys.stdlib_module_names} <= {"mlx_speech", "convert"}
    assert watched.imported & HEAVY == set()


@pytest.mark.parametrize("line", RUNS)
def test_run(watched, tmp_path, line):
    for name, file in FILES.items():
        (tmp_path / name).symlink_to(file)
    (tmp_path / "bad.jsonl").write_text(json.dumps({"audio": "nowhere.wav", "text": "hello"}))
    command, *args = line.split()
    status, out, err = watched.run(f"mlx_speech.{command}", *args, stdin="hello")
    if command == "finetune":
        assert (status, out) == (1, "")
        assert "1 of 1 rows cannot be used" in err
    else:
        assert status == 0, err
        assert out or list((tmp_path / "out").iterdir())
    assert watched.imported & HEAVY == RUNS[line]


def test_serve(watched):
    """Until it is ready: the rest with the first recording."""
    with watched.start("mlx_speech.serve", "--port", "0") as process:
        try:
            assert process.stderr.readline().startswith(f"serving {TINY.name} at ")
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert watched.imported & HEAVY - {*TEXT, *SERVER} == set()
