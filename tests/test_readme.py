"""What the README shows works: its Python runs, its commands are right, its layout exists."""

from __future__ import annotations

import re
import shlex
from importlib import import_module

import pytest
from conftest import DATA, ROOT, TINY

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code, capsys, tmp_path, monkeypatch):
    """With the bundled model and recording in place of the real ones."""
    monkeypatch.chdir(tmp_path)
    code = re.sub(r'"ibm-granite/[^"]+"', repr(str(TINY)), code)
    code = code.replace('"talk.m4a"', repr(str(DATA / "audio" / "flite_08.flac")))
    exec(compile(code, "README.md", "exec"), {})
    light = "the kitchen light is on."
    expected = f"{light}\n{light}sleep well.\n" if "Chat" in code else "unlock the back gate"
    assert expected in capsys.readouterr().out


def test_commands_are_right():
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    modules = {"convert": "convert.cli"}
    for name in ("transcribe", "generate", "chat", "convert"):
        command_line = import_module(modules.get(name, f"mlx_speech.cli.{name}"))
        parser = command_line.build_parser()
        commands = re.findall(rf"^python -m mlx_speech\.{name}.*", text, re.MULTILINE)
        assert len(commands) >= 3
        for command in commands:
            words = shlex.split(re.sub(r" <.*", "", command), comments=True)
            command_line.check_usage(parser, parser.parse_args(words[3:]))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_layout():
    layout = re.search(r"```\n(mlx_speech/\n.*?)```", README, re.DOTALL)[1]
    found = re.findall(r"^( *)(\S.*?)(?:  .*)?$", layout, re.MULTILINE)
    shown = {name for _, names in found for name in names.split()}
    for indent, names in found:
        if not indent:
            folder = ROOT / names
        for name in names.split() if indent else ():
            assert (folder / name).exists(), name
    assert [names for indent, names in found if not indent] == ["mlx_speech/", "convert/"]
    modules = {
        path.name for name in ("mlx_speech", "convert") for path in (ROOT / name).glob("*.py")
    }
    assert {name for name in modules if not name.startswith("__")} <= shown
