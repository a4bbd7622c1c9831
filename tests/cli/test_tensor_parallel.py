"""`--tensor-parallel`: the first of several processes does what one does, and others follow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from commands import Caller
from conftest import ROOT, TINY, edit_json
from ranks import (
    SECONDS,
    be_impatient,
    check_loss,
    finished,
    free_ports,
    run_ranks,
    started_ranks,
)

import mlx_speech
from mlx_speech.cli import chat, generate, transcribe

AUDIO = ROOT / "tests" / "data" / "audio"
RECORDINGS = [str(AUDIO / f"{name}.flac") for name in ("espeak_03", "festival_13", "flite_08")]
#: with pings that come often
PROGRAM = """
import sys
import impatient
from mlx_speech.models import leader
leader.SECONDS_BETWEEN_PINGS = 0.2
main = __import__(f"mlx_speech.cli.{sys.argv[1]}", fromlist=["main"]).main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def alone(monkeypatch, capsys):
    """What one process prints, given the module of a command line and its arguments."""
    monkeypatch.delenv("MLX_RANK", raising=False)
    return lambda module, *arguments, said="": Caller(module.main, monkeypatch, capsys)(
        *arguments, stdin=said
    )


def launched(*arguments: str, said: str = "") -> tuple[str, str]:
    """What two print that mlx.launch starts, which does not tell how they end."""
    launch = "from mlx._distributed_utils.launch import main; main()"
    how = ["-n", "2", "--backend", "ring", "--starting-port", str(free_ports(1)[0])]
    command = [sys.executable, "-c", launch, *how, "--", sys.executable, "-m", *arguments]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as process:
        try:
            printed, errors = process.communicate(said, timeout=SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return printed, errors


def rounded(folder: Path) -> dict[str, object]:
    """What files hold, probabilities as far as sums in another order leave them alone."""

    def parsed(pairs: list) -> dict:
        inexact = ("avg_logprob", "probability")
        return {name: round(value, 4) if name in inexact else value for name, value in pairs}

    return {
        path.name: json.loads(path.read_text(), object_pairs_hook=parsed)
        if path.suffix == ".json"
        else path.read_bytes()
        for path in folder.iterdir()
    }


def test_transcribe(tmp_path, alone):
    """Files are written by the first alone, and are those of one process; so is what it says."""
    options = ["--model", str(TINY), "-f", "all", "--word-timestamps", *RECORDINGS, "nowhere.wav"]
    one = alone(transcribe, *options, "-o", str(tmp_path / "one"))
    command = ["-m", "mlx_speech.transcribe", *options, "--tensor-parallel"]
    led, follower = run_ranks([*command, "-o", str(tmp_path / "{rank}")], 2, tmp_path)
    assert led[:2] == one[:2] == (1, "")
    assert [line.split(" (")[0] for line in led[2].splitlines()] == [
        line.split(" (")[0] for line in one[2].splitlines()
    ]
    assert follower == (0, "", "")
    assert not (tmp_path / "1").exists()
    assert rounded(tmp_path / "0") == rounded(tmp_path / "one")
    again = [*command, "-o", str(tmp_path / "0"), "--resume"]  # loads nothing
    led, follower = run_ranks(again, 2, tmp_path)
    assert led[0] == 1
    assert "3 skipped" in led[2]
    assert follower == (0, "", "")


def test_generate(tmp_path, alone):
    options = ["--model", str(TINY), "--prompt", "the radio", "--num-beams", "3", "--quiet"]
    one = alone(generate, *options)
    assert one[1].strip()
    led = run_ranks(["-m", "mlx_speech.generate", *options, "--tensor-parallel"], 2, tmp_path)
    assert led == [one, (0, "", "")]


def test_chat(tmp_path, alone):
    """Lines that come through mlx.launch, which gives them to all."""
    lines = ["Hello there", "What is it?", f"/audio {RECORDINGS[0]}", "/reset", "Hello there"]
    said = "".join(f"{line}\n" for line in [*lines, f"/save {tmp_path / 'chat'}", "/quit"])
    options = ["--model", str(TINY), "--max-tokens", "12", "--max-kv-size", "80"]
    _, printed, errors = alone(chat, *options, said=said)
    (tmp_path / "chat").unlink()
    led = launched("mlx_speech.chat", *options, "--tensor-parallel", said=said)
    assert led[0] == printed
    refused = "error: a cache is not kept in a file where several processes share the layers of a "
    ours = [line for line in led[1].splitlines() if "Node with rank" not in line]
    assert ours == [*errors.splitlines()[:-1], f"{refused}model: each has a part of it"]


@contextmanager
def chatting(folder: Path) -> Iterator[dict[int, subprocess.Popen]]:
    """Two processes after a first reply; nothing more is said to them."""
    options = ["--model", str(TINY), "--max-tokens", "3", "--tensor-parallel", "--quiet"]
    with (
        started_ranks(
            ["-c", PROGRAM, "chat", *options], 2, folder, stdin=subprocess.PIPE
        ) as processes,
        ExitStack() as inputs,
    ):
        processes[0].stdin.write("Hello there\n")
        processes[0].stdin.flush()
        assert processes[0].stdout.readline()
        for process in processes.values():
            inputs.enter_context(process.stdin)
            process.stdin = None  # or `communicate` would close it
        yield processes


@pytest.mark.parametrize(
    ("number", "lost"), [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 1)]
)
def test_a_rank_that_is_lost(tmp_path, number, lost):
    """While nothing is computed; the other ends within the limit, with one line."""
    with chatting(tmp_path) as processes:
        processes.pop(lost).send_signal(number)
        be_impatient(tmp_path)
        (other,) = processes.values()
        status, _, said = finished(other)
        check_loss((status, "", said), 1 - lost)


def test_interrupted(tmp_path):
    """Ctrl-C, which all processes get: what becomes of it is for the first to say."""
    with chatting(tmp_path) as processes:
        for rank in (1, 0):
            os.kill(processes[rank].pid, signal.SIGINT)
        ended = [finished(process) for process in processes.values()]
    assert ended == [(130, "", "interrupted\n"), (0, "", "")]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[dict[int, subprocess.Popen], httpx.Client]]:
    options = ["--model", str(TINY), "--port", "0", "--tensor-parallel"]
    with started_ranks(["-c", PROGRAM, "serve", *options], 2, folder) as processes:
        said = iter(processes[0].stderr.readline, "")
        url = next(line.split()[-1] for line in said if line.startswith("serving "))
        with httpx.Client(base_url=url, timeout=SECONDS) as client:
            yield processes, client


def test_serve(tmp_path, tiny):
    """Requests that come together are answered by the engine's thread, as by one process."""
    with serving(tmp_path) as (processes, client):

        def transcribed(path: str) -> str:
            files = {"file": Path(path).read_bytes()}
            form = {"model": TINY.name}
            return client.post("/v1/audio/transcriptions", data=form, files=files).json()["text"]

        with ThreadPoolExecutor(3) as pool:
            texts = list(pool.map(transcribed, RECORDINGS))
        processes[1].send_signal(signal.SIGTERM)  # which the first decides on as well
        texts.append(transcribed(RECORDINGS[0]))
        processes[0].send_signal(signal.SIGTERM)
        ended = [finished(process) for process in processes.values()]
    asked = [*RECORDINGS, RECORDINGS[0]]
    assert texts == [mlx_speech.transcribe(path, tiny).text for path in asked]
    assert [status for status, *_ in ended] == [0, 0]
    assert ended[1] == (0, "", "")


def test_a_server_without_its_follower(tmp_path):
    """It ends, though nobody but a request has noticed it."""
    with serving(tmp_path) as (processes, _):
        processes[1].kill()
        be_impatient(tmp_path)
        check_loss(finished(processes[0]), 0)


IN_FOLDER = """
import os, sys
os.chdir(sys.argv.pop(1))
from mlx_speech.cli.generate import main
sys.exit(main(sys.argv[1:]))
"""


def failures(tmp_path: Path, size: int, *options: str, folder: str = ".") -> list[str]:
    """What each rank says that does not get as far as computing."""
    options = ("--prompt", "x", "--tensor-parallel", *options)
    ranks = run_ranks(["-c", IN_FOLDER, folder, *options], size, tmp_path)
    assert [(status, printed) for status, printed, _ in ranks] == [(1, "")] * size
    assert all(said.count("\n") == 1 for *_, said in ranks)
    return [said for *_, said in ranks]


def test_models_that_cannot_be_shared(tmp_path):
    first, *others = failures(tmp_path, 3, "--model", str(TINY))
    heads = "granite has 2 KV heads: tensor parallelism takes 2 processes, not 3\n"
    assert first == f"error: {heads}"
    assert others == [f"error: rank {rank}: {heads}" for rank in (1, 2)]


def test_ranks_that_are_not_the_same(tmp_path, tiny_copy):
    """Other files at the same place, or none."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    os.symlink(TINY, tmp_path / "0" / "model")
    os.rename(tiny_copy, tmp_path / "1" / "model")
    edit_json(tmp_path / "1" / "model" / "config.json", architectures=["another"])
    where = {"folder": str(tmp_path / "{rank}")}
    first, other = failures(tmp_path, 2, "--model", "./model", **where)
    assert first.startswith("error: config.json of ./model is another on rank 1 (")
    assert other == first.replace("error: ", "error: rank 1: ")
    os.remove(tmp_path / "1" / "model" / "config.json")
    first, other = failures(tmp_path, 2, "--model", "./model", **where)
    assert other.startswith("error: rank 1: ")
    assert first == other.replace("error: rank 1: ", "error: rank 1 has failed: ")


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("generate", ["--prompt", "x"], "several processes share one model: add --tensor-parallel"),
        (
            "chat",
            ["--tensor-parallel", "--chat-model", "x"],
            "--chat-model is run by mlx-lm in one process: leave out --tensor-parallel",
        ),
    ],
)
def test_wrong_usage(tmp_path, command, options, message):
    first, other = run_ranks(["-m", f"mlx_speech.{command}", *options], 2, tmp_path)
    assert first[:2] == other[:2] == (2, "")
    assert first[2].endswith(f"error: {message}\n")
    assert other[2] == f"error: rank 1: {message}\n"


def test_one_process(monkeypatch, capsys):
    monkeypatch.delenv("MLX_RANK", raising=False)
    for module, needed in ((generate, ["--prompt", "x"]), (transcribe, ["a.wav"]), (chat, [])):
        with pytest.raises(SystemExit) as ended:
            module.main(["--tensor-parallel", *needed])
        assert ended.value.code == 2
        name = module.__name__.rpartition(".")[2]
        launch = f"mlx.launch -n 2 -- python -m mlx_speech.{name} --tensor-parallel ...\n"
        assert capsys.readouterr().err.endswith(
            f"--tensor-parallel is for several processes: {launch}"
        )


def test_the_readme_has_what_is_calculated():
    script = ROOT / "tests" / "benchmarks" / "tensor_parallel.py"
    tables = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert tables.stdout.count("| 4.1-2b |") == 7
    document = (ROOT / "mlx_speech" / "distributed" / "README.md").read_text()
    assert all(table in document for table in tables.stdout.split("\n\n"))
