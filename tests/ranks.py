"""Several processes on loopback, as `mlx.launch` starts them: with MLX_RANK and MLX_HOSTFILE."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from conftest import ROOT

from mlx_speech.cli.ranks import OF_SOCKETS

SECONDS = 120  #: that a process may take on a slow machine
#: what a rank says of one that is lost: MLX mostly notices it, but may wait for it in vain
LOST = (
    "(the connection to another rank was lost: it has ended, or its machine or the network has"
    r"|nothing came from another rank for \d+ s: it hangs, or the network does)\n"
)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def started_ranks(
    command: Sequence[str],
    size: int,
    folder: Path,
    *,
    absent: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
) -> Iterator[dict[int, subprocess.Popen]]:
    """Processes by rank, killed at the end.

    Args:
        command: arguments of Python, as `["-m", "mlx_speech.transcribe", ...]` or `["-c", code]`;
            `{rank}` in them becomes the rank.
        folder: for the hostfile.
        absent: ranks that never start.
        stdin: of each, as of `Popen`.
    """
    hostfile = folder / f"hosts-{os.urandom(4).hex()}.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
    started: list[subprocess.Popen] = []
    try:
        for rank in (rank for rank in range(size) if rank not in absent):
            arguments = [argument.replace("{rank}", str(rank)) for argument in command]
            path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
            ours = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile), "PYTHONPATH": path}
            ours["IMPATIENT"] = str(folder / "impatient")
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, **(env or {}), **ours},
                cwd=ROOT,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
        yield dict(zip((r for r in range(size) if r not in absent), started, strict=True))
    finally:
        for process in started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    """Its exit status, what it printed, and what it said."""
    printed, said = process.communicate(timeout=SECONDS)
    return process.returncode, printed, said


def without_sockets(result: tuple[int, str, str]) -> tuple[int, str, str]:
    """What `finished` gives, for programs that use a group as it is: without what MLX says of its
    sockets, which command lines leave out themselves."""
    status, printed, said = result
    lines = said.splitlines(keepends=True)
    return status, printed, "".join(line for line in lines if not re.search(OF_SOCKETS, line))


def run_ranks(command: Sequence[str], size: int, folder: Path, **how) -> list[tuple[int, str, str]]:
    """What becomes of each rank; see `started_ranks` and `finished`."""
    with started_ranks(command, size, folder, **how) as processes:
        return [finished(process) for process in processes.values()]


def run_bare_ranks(*args, **how) -> list[tuple[int, str, str]]:
    """The same; see `without_sockets`."""
    return [without_sockets(result) for result in run_ranks(*args, **how)]


def be_impatient(folder: Path) -> None:
    """Tell ranks that were started with this folder, and import `impatient`, to wait for others 5 s
    only."""
    (folder / "impatient").touch()


def check_loss(result: tuple[int, str, str], rank: int, before: str = "") -> None:
    """A command line has ended as another rank was lost, with one line that says so.

    Args:
        before: a regular expression of what it said before.
    """
    status, printed, said = result
    assert (status in (1, -signal.SIGKILL), printed) == (True, "")  # by itself, or by its guard
    who = f"error: rank {rank}: " if rank else "error: "
    assert re.fullmatch(before + re.escape(who) + LOST, said), said
