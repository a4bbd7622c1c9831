"""The command line of `transcribe` on several ranks, and what one process would say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen

from conftest import DATA, TINY
from ranks import finished, started_ranks

AUDIO = DATA / "audio"
# several processes, each with threads for all cores, would wait for each other
ENV = {"HF_HUB_OFFLINE": "1", "MLX_SPEECH_MODEL": str(TINY), "OPENBLAS_NUM_THREADS": "1"}

# in each rank, before the command line is what it is
_PROGRAM = """
import os, signal, sys
rank = int(os.environ["MLX_RANK"])
{code}
from mlx_speech.cli.transcribe import main
sys.exit(main({args}))
"""

#: code for parts of half a minute, not ten, for recordings that a test can afford
SHORT_PARTS = """
from mlx_speech.transcription import parts
parts.SECTION_FRAMES, parts.Halo.least_part = 1500, 10.0
"""


def started(
    args: Sequence, size: int, folder: Path, code: str = "", **how
) -> AbstractContextManager[dict[int, Popen]]:
    """The ranks of a command line, by number.

    Args:
        folder: for what they need.
        code: run by each before it, knowing its `rank`.
    """
    words = [str(arg) for arg in args]
    program = _PROGRAM.format(code=code, args=words)
    command = ["-c", program] if code else ["-m", "mlx_speech.transcribe", *words]
    return started_ranks(command, size, folder, env=ENV, **how)


def transcribed(
    args: Sequence, size: int, folder: Path, code: str = "", **how
) -> list[tuple[int, str, str]]:
    """Exit status, standard output and standard error of each rank."""
    with started(args, size, folder, code, **how) as processes:
        return [finished(process) for process in processes.values()]


def timeless(said: str) -> str:
    """What was said, without how long it took and how much memory."""
    said = re.sub(r".* left\n", "", said)  # how far it is, on a slow machine
    said = re.sub(r"in [\d.]+ s\b", "in S s", said)
    said = re.sub(r"[\d.]+ x real time", "X x real time", said)
    return re.sub(r"peak memory [\d.]+ GB", "peak memory M GB", said)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def on_call(rank: int, name: str, then: str, number: int = 1) -> str:
    """Code for `started`: at its so-and-so-manieth call of a function, a rank does something.

    Args:
        name: as `module:name` or `module:class.name`.
    """
    return f"""
import importlib
if rank == {rank}:
    module, _, name = "{name}".partition(":")
    owner = importlib.import_module(module)
    *outer, name = name.split(".")
    for each in outer:
        owner = getattr(owner, each)
    original, calls = getattr(owner, name), []
    def changed(*args, **kwargs):
        calls.append(0)
        if len(calls) == {number}:
            {then}
        return original(*args, **kwargs)
    setattr(owner, name, changed)
"""
