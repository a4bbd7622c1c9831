"""What the benchmarks share: workers in processes of their own, which take turns, demands that are
checked, and OpenBLAS.

MLX's CPU build for Linux comes with a slow BLAS; OpenBLAS goes before it where it is installed
(Debian: libopenblas0-pthread).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def find_openblas() -> Path | None:
    """OpenBLAS as Debian installs it for this machine."""
    folders = Path("/usr/lib").glob(f"{platform.machine()}-*/openblas-pthread")
    return next(
        (f / "libopenblas.so.0" for f in folders if (f / "libopenblas.so.0").exists()), None
    )


def openblas_environment() -> dict[str, str]:
    """This process's environment, in which another one preloads OpenBLAS if there is one."""
    environment = dict(os.environ)
    library = find_openblas() if sys.platform == "linux" else None
    preload = environment.get("LD_PRELOAD", "")
    if library is not None and str(library) not in preload:
        environment["LD_PRELOAD"] = f"{library}:{preload}" if preload else str(library)
    return environment


def preload_openblas() -> None:
    """Start the running script anew with OpenBLAS, unless it has it or there is none."""
    environment = openblas_environment()
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def serve(make_worker: Callable[[], Any]) -> None:
    """Be a worker: answer each line of standard input, `[method, arguments...]`, with one of JSON.

    The first line is the worker's `hello`.
    """
    # what packages print goes where it disturbs nobody
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = make_worker()
    print(json.dumps(worker.hello), file=answers, flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(worker, method)(*arguments)), file=answers, flush=True)


class Remote:
    """A worker in its own process: the running script, started with `--worker` and arguments."""

    def __init__(self, *arguments: str | Path, env: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--worker", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )
        self.hello = self._answer()

    def ask(self, method: str, *arguments) -> dict:
        print(json.dumps([method, *arguments]), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a worker ended early; what it said stands above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def take_turns(remotes: dict[str, Remote], runs: int, *request) -> dict[str, list[dict]]:
    """Every side's runs; who goes first changes from run to run."""
    results: dict[str, list[dict]] = {side: [] for side in remotes}
    for number in range(runs):
        for side in list(remotes)[:: -1 if number % 2 else 1]:
            results[side].append(remotes[side].ask(*request))
    return results


class Demands:
    """What was demanded, and whether it was met.

    Attributes:
        missed: what was not, in words.
    """

    def __init__(self):
        self.missed: list[str] = []

    def check(self, what: str, met: bool, told: str = "") -> None:
        """Print a line about one of them."""
        print(f"  {what:<46}{told:>22}   {'met' if met else 'NOT MET'}")
        if not met:
            self.missed.append(f"{what}: {told}" if told else what)

    def at_most(self, what: str, value: float, limit: float) -> None:
        self.check(what, value <= limit, f"{value:.2f} <= {limit:.2f}")

    def at_least(self, what: str, value: float, limit: float) -> None:
        self.check(what, value >= limit, f"{value:.2f}x >= {limit:.1f}x")

    def status(self) -> int:
        """The exit status; says what was missed."""
        for what in self.missed:
            print(f"not met: {what}", file=sys.stderr)
        return 1 if self.missed else 0
