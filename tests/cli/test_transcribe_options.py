"""What --help says."""

from __future__ import annotations

import inspect
import re

import commands

import mlx_speech


class TestHelp:
    def test_one_page(self):
        status, out, _ = commands.run("transcribe", "-h", COLUMNS="80")
        assert status == 0
        assert len(out.splitlines()) <= 75
        groups = re.findall(r"^(\w.*):$", out, re.MULTILINE)
        assert groups == [
            "recordings",
            "model",
            "what to do",
            "long recordings",
            "output",
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
