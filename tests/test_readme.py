"""What the README shows works: its Python runs, its commands parse, its layout exists."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import DATA, ROOT, TINY

from mlx_speech.transcribe import build_parser

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code, capsys):
    """With the bundled model and recording in place of the real ones."""
    code = re.sub(r'"ibm-granite/[^"]+"', repr(str(TINY)), code)
    code = code.replace('"talk.m4a"', repr(str(DATA / "audio" / "flite_08.flac")))
    exec(compile(code, "README.md", "exec"), {})
    assert "unlock the back gate" in capsys.readouterr().out


def test_commands_parse():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("python -m mlx_speech.transcribe")]
    assert len(commands) > 5
    for command in commands:
        words = shlex.split(re.sub(r" <.*", "", command), comments=True)
        assert build_parser().parse_args(words[3:]).audio


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_layout():
    for name in re.findall(r"^  (\S.*?)(?:  .*)?$", blocks("")[-1], re.MULTILINE):
        for path in name.split():
            assert (ROOT / "mlx_speech" / path).exists(), path
