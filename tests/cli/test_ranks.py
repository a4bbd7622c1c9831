"""Of several ranks one tells of the usage; none of a command that is for one process."""

from __future__ import annotations

import pytest
from ranks import run_ranks


def test_help(tmp_path):
    first, other = run_ranks(["-m", "mlx_speech.transcribe", "--help"], 2, tmp_path)
    assert (first[0], first[2]) == (0, "")
    assert first[1].startswith("usage: ")
    assert other == (0, "", "")


def test_wrong_usage(tmp_path):
    first, other = run_ranks(["-m", "mlx_speech.transcribe", "--nonsense"], 2, tmp_path)
    assert first[:2] == (2, "")
    assert first[2].startswith("usage: ")
    assert other[:2] == (2, "")
    assert other[2].startswith("error: rank 1: ")
    assert other[2].count("\n") == 1


@pytest.mark.parametrize(
    "command", [["mlx_speech.benchmark"], ["mlx_speech.convert", "--model", "m"]]
)
def test_for_one_process(tmp_path, command):
    (status, printed, said), _ = run_ranks(["-m", *command], 2, tmp_path)
    assert (status, printed) == (2, "")
    assert said.endswith("runs in one process: start it without mlx.launch\n")
