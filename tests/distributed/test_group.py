"""Ranks tell each other things, and notice when one is missing, silent or gone."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap

import pytest
from ranks import finished, run_ranks, started_ranks

from mlx_speech.distributed.group import Group
from mlx_speech.distributed.launched import rank_of_launch

START = """
import os, sys
from mlx_speech.distributed.group import Group
def silent(message):
    os.write(2, f"error: {message}\\n".encode())
    os._exit(1)
group = Group.start(silent, float(os.environ.get("START_LIMIT", 60)))
group.timeout = float(os.environ.get("LIMIT", 60))
def say(*words):
    print(*words, flush=True)
"""


def program(code: str) -> list[str]:
    return ["-c", START + textwrap.dedent(code)]


def test_alone(monkeypatch):
    monkeypatch.delenv("MLX_RANK", raising=False)
    assert rank_of_launch() is None
    assert Group.start(pytest.fail) is None


@pytest.mark.parametrize("size", [2, 3])
def test_gather(tmp_path, size):
    """Bytes of any length, also none; and again and again."""
    code = """
    for length in (0, 1, 3, 70_000):
        mine = bytes([65 + group.rank]) * (length * group.rank)
        gathered = group.gather(mine)
        assert gathered == [bytes([65 + r]) * (length * r) for r in range(group.size)], length
    for length in (0, 1, 3, 70_000):
        assert group.broadcast(bytes([255 - group.rank]) * length) == b"\\xff" * length
    say(group.rank, group.size)
    """
    results = run_ranks(program(code), size, tmp_path)
    assert results == [(0, f"{rank} {size}\n", "") for rank in range(size)]


def test_same(tmp_path):
    """The same error on every rank, about the first that is not as rank 0."""
    code = """
    from mlx_speech.errors import DistributedError
    def check(**facts):
        try:
            group.check_same({name: value for name, value in facts.items() if value})
            say("same")
        except DistributedError as error:
            say(error)
    r = group.rank
    check(version="1", a="x")
    check(version="1", model="xy"[r == 2])
    check(talk="x" * (r != 1))
    check(talk="x" * (r == 1))
    """
    results = run_ranks(program(code), 3, tmp_path)
    expected = [
        "same",
        "model is another on rank 2 (y) than on rank 0 (x)",
        "rank 1 does not have talk, which rank 0 has; all ranks need the same",
        "rank 1 has talk, which rank 0 does not have; all ranks need the same",
    ]
    assert results == [(0, "".join(f"{line}\n" for line in expected), "")] * 3


def test_a_rank_that_never_starts(tmp_path):
    """Within the limit each of the others ends, with a line."""
    how = {"absent": [1], "env": {"START_LIMIT": "3"}}
    with started_ranks(program("say('started')"), 3, tmp_path, **how) as processes:
        ended = {rank: finished(process) for rank, process in processes.items()}
    for rank, (status, printed, said) in ended.items():
        assert (status, printed) == (-signal.SIGKILL, ""), rank
        assert said == "error: the ranks did not all start within 3 s: see what the others say\n"


def check_ended(process: subprocess.Popen) -> None:
    """It has noticed that a rank was lost: MLX said so, or was silent."""
    status, printed, said = finished(process)
    if status:
        silent = "nothing came from another rank for 5 s: it hangs, or the network does"
        assert (status, printed, said) == (1, "", f"error: {silent}\n")
    else:
        lost = (
            "the connection to another rank was lost: it has ended, or its machine or the network"
        )
        assert (printed, said) == (f"{lost} has\n", "")


@pytest.mark.parametrize("killed", range(3))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs(tmp_path, killed, number):
    code = """
    from mlx_speech.errors import DistributedError
    group.gather()
    say("ready")
    error = None
    for attempt in range(2):  # the second fails alike, and never waits
        try:
            while True:
                group.gather(b"x")
        except DistributedError as latest:
            assert error is None or str(error) == str(latest)
            error = latest
    say(error)
    """
    with started_ranks(program(code), 3, tmp_path, env={"LIMIT": "5"}) as processes:
        for process in processes.values():
            assert process.stdout.readline() == "ready\n"
        os.kill(processes.pop(killed).pid, number)
        for process in processes.values():
            check_ended(process)
