"""The models that have been released: what --list-models says."""

from __future__ import annotations

import re
from importlib import import_module

import commands
from conftest import ROOT

from mlx_speech.cli.released import RELEASED, list_models


class TestModels:
    def test_list(self):
        assert commands.run("transcribe", "--list-models") == (0, list_models(), "")
        assert max(map(len, list_models().splitlines())) <= 80
        for releases in RELEASED.values():
            for repository, gigabytes, notes in releases:
                (line,) = re.findall(rf".* {re.escape(repository)} .*", list_models())
                assert float(re.search(r"([\d.]+) GB", line)[1]) == gigabytes
                assert notes in line

    def test_the_readme_has_them(self):
        readme = (ROOT / "README.md").read_text()
        rows = re.findall(r"^\| `(ibm-granite/[^`]+)` \| ([\d.]+) GB \|", readme, re.MULTILINE)
        granite = RELEASED["Granite Speech"]
        assert rows == [(r.repository, f"{r.gigabytes}") for r in granite]

    def test_the_default_is_the_first(self):
        default = import_module("mlx_speech.transcription.pipeline").DEFAULT_MODEL
        assert RELEASED["Granite Speech"][0].repository == default
