"""Ranks tell each other things, and notice when one is missing, silent or gone."""

from __future__ import annotations

import re
import signal
import subprocess
import textwrap
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from ranks import LOST, be_impatient, finished, run_bare_ranks, started_ranks, without_sockets

from mlx_speech.distributed.group import Group, as_loss, tells_loss
from mlx_speech.distributed.launched import rank_of_launch
from mlx_speech.errors import DistributedError

START = """
import os, sys
import impatient
from mlx_speech.distributed.group import Group
def silent(message):
    os.write(2, f"error: {message}\\n".encode())
    os._exit(1)
group = Group.start(silent, float(os.environ.get("START_LIMIT", 60)))
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
    results = run_bare_ranks(program(code), size, tmp_path)
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
    results = run_bare_ranks(program(code), 3, tmp_path)
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
        ended = {rank: without_sockets(finished(process)) for rank, process in processes.items()}
    for rank, (status, printed, said) in ended.items():
        assert (status, printed) == (-signal.SIGKILL, ""), rank
        assert said == "error: the ranks did not all start within 3 s: see what the others say\n"


def check_ended(process: subprocess.Popen) -> None:
    """It has noticed that a rank was lost: MLX said so, or was silent."""
    status, printed, said = without_sockets(finished(process))
    if status:
        assert (status in (1, -signal.SIGKILL), printed) == (True, "")
        assert re.fullmatch("error: (rank .: )?" + LOST, said), said
    else:
        assert re.fullmatch(LOST, printed), printed
        assert said == ""


#: each of three ranks is killed; and one hangs
FAULTS = [*((signal.SIGKILL, rank) for rank in range(3)), (signal.SIGSTOP, 1)]


def check_fault(code: str, folder: Path, number: int, rank: int) -> None:
    """What happens to one of three ranks that are ready is noticed by the others."""
    with started_ranks(program(code), 3, folder) as processes:
        for process in processes.values():
            assert process.stdout.readline() == "ready\n"
        processes.pop(rank).send_signal(number)
        be_impatient(folder)
        for process in processes.values():
            check_ended(process)


@pytest.mark.parametrize(("number", "rank"), FAULTS)
def test_a_rank_that_dies_or_hangs(tmp_path, number, rank):
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
    check_fault(code, tmp_path, number, rank)


#: what collectives give where two ranks give the same, or the other one nothing
RIGHT = {
    "gather": ("all_gather", lambda x: mx.concatenate([x, x])),
    "broadcast": ("all_sum", lambda x: x),
    "confirm": ("all_sum", lambda x: 2 * x),
}
WRONG = {
    "zeros": lambda x: x * 0,
    "sevens": lambda x: x * 0 + 7,
    "one that differs": lambda x: x + (mx.arange(x.size) == x.size - 1).reshape(x.shape),
    "of the call before": None,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("call", "data", "number"),
    [
        ("gather", [b"abc"], 0),
        ("gather", [b"abc"], 1),
        ("broadcast", [b"abc"], 0),
        ("broadcast", [b"abc"], 1),
        ("confirm", [], 0),
    ],
)
def test_garbage(monkeypatch, call, data, number, wrong):
    """Which is what collectives give where a rank is lost meanwhile, for the head or for what
    comes after it: an error, and from then on another, before anything is waited for."""
    group = Group(SimpleNamespace(rank=lambda: 0, size=lambda: 2), pytest.fail)
    name, right = RIGHT[call]
    calls, earlier = [], []

    def collective(x, group, stream):
        calls.append(x)
        if not earlier or len(calls) <= number:
            return right(x)
        given = WRONG[wrong](right(x)) if WRONG[wrong] else earlier[number]
        return given.astype(x.dtype)

    monkeypatch.setattr(mx.distributed, name, collective)
    try:
        told = {"gather": [b"abc"] * 2, "broadcast": b"abc", "confirm": None}
        assert getattr(group, call)(*data) == told[call]
        earlier += [right(x) for x in calls]
        calls.clear()
        if number and not WRONG[wrong]:  # the same data would be right
            data = [b"abd"]
        with pytest.raises(DistributedError, match="connection to another rank was lost"):
            getattr(group, call)(*data)
        calls.clear()
        with pytest.raises(DistributedError, match="connection to another rank was lost"):
            group.gather()
        assert not calls
    finally:
        group._guard.stdin.close()
        group._guard.wait()


def test_what_tells_of_a_loss():
    lost = RuntimeError("[ring] connection to a peer was lost")
    told = as_loss(lost)
    assert tells_loss(lost)
    assert isinstance(told, DistributedError)
    assert "connection to another rank was lost" in str(told)
    for error in (RuntimeError("[metal] no memory"), ValueError("[ring] x"), KeyError("[ring]")):
        assert not tells_loss(error)
        assert as_loss(error) is error


def test_nobody_is_asked_to_end_it(tmp_path):
    """The process beside it does, as where Python cannot."""
    code = """
    import time
    group.on_silence = type(group).__init__.__defaults__[0]  # as where none is given
    group.gather()
    if group.rank:
        time.sleep(1000)
    group.timeout = 1.0
    group.gather()
    """
    with started_ranks(program(code), 2, tmp_path) as processes:
        result = without_sockets(finished(processes[0]))
    silent = "nothing came from another rank for 1 s: it hangs, or the network does"
    assert result == (-signal.SIGKILL, "", f"error: {silent}\n")
