"""What the READMEs show works: Python runs, commands are right, output and layout are as shown."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from itertools import zip_longest
from pathlib import Path

import pytest
from commands import environment
from conftest import DATA, ROOT, TINY

import mlx_speech

FOLDERS = (".", "mlx_speech", "mlx_speech/server", "mlx_speech/training", "convert", "tests")
READMES = [ROOT / folder / "README.md" for folder in FOLDERS]
#: that of examples/ is tested with the examples
DOCUMENTS = [*READMES, ROOT / "examples" / "README.md", *(ROOT / ".github").glob("*.md")]
FIRST = READMES[0].read_text()
#: between code and what it prints
THEN = "```\n\n```\n"
#: in scripts, and in sessions after a prompt
COMMAND = re.compile(r"^(?:\$ )?(python -m (?:mlx_speech\.)?(\w+) (?:.*\\\n)*.*)", re.MULTILINE)
PARSERS = {
    name: f"mlx_speech.{name}.cli" if name == "convert" else f"mlx_speech.cli.{name}"
    for name in ("transcribe", "generate", "chat", "serve", "benchmark", "finetune", "convert")
}


def blocks(document: Path, *languages: str) -> list[str]:
    """What stands between fences, in one of these languages; in any if none is named."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
    return [block for language, block in found if not languages or language in languages]


def short(document: Path) -> str:
    return str(document.relative_to(ROOT))


def each(documents, *languages: str):
    """Parameters: the blocks in these languages, called after where they are."""
    return [
        pytest.param(block, id=f"{short(document)}-{index}")
        for document in documents
        for index, block in enumerate(blocks(document, *languages))
    ]


def as_clone(folder: Path) -> Path:
    """A folder in which the paths of a clone are, and what is written lands."""
    for name in ("examples", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


class TestPython:
    @pytest.mark.parametrize("code", each(READMES, "python"))
    def test_runs(self, code, capsys, tmp_path, monkeypatch):
        """With the bundled model and recording in place of the real ones."""
        monkeypatch.chdir(as_clone(tmp_path))
        code = re.sub(r'"ibm-granite/[^"]+"', repr(str(TINY)), code)
        code = code.replace('"talk.m4a"', repr(str(DATA / "audio" / "flite_08.flac")))
        exec(compile(code, "README.md", "exec"), {})
        printed = capsys.readouterr().out
        if f"{code}{THEN}" in FIRST:
            assert_same(printed, FIRST.split(f"{code}{THEN}")[1].split("```\n")[0])
            return
        light = "the kitchen light is on."
        expected = f"{light}\n{light}sleep well.\n" if "Chat" in code else "unlock the back gate"
        assert expected in printed

    def test_the_first_shows_what_it_prints(self):
        (code,) = blocks(READMES[0], "python")
        assert code.count("\n") <= 8
        assert f"{code}{THEN}" in FIRST


class TestCommands:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=short)
    def test_options_exist(self, document):
        text = "\n".join(blocks(document, "sh", "console"))
        for command, name in COMMAND.findall(text):
            if name in PARSERS:
                command_line = import_module(PARSERS[name])
                parser = command_line.build_parser()
                words = shlex.split(re.sub(r" <.*", "", command.replace("\\\n", "")), comments=True)
                command_line.check_usage(parser, parser.parse_args(words[3:]))

    @pytest.mark.parametrize("name", PARSERS)
    def test_each_is_shown(self, name):
        commands = [c for d in READMES for b in blocks(d, "sh") for c in COMMAND.findall(b)]
        assert sum(module == name for _, module in commands) >= 3

    def test_make_targets_exist(self):
        makefile = (ROOT / "Makefile").read_text()
        for document in DOCUMENTS:
            for target in re.findall(r"(?:^|`|\$ )make (\w+)", document.read_text(), re.MULTILINE):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        tests = (ROOT / "tests" / "README.md").read_text()
        for target in re.search(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[1].split():
            # for Linux, by `make test`
            assert target == "openblas" or f"\nmake {target} " in tests, target


class TestSession:
    @pytest.mark.slow
    def test_output_is_as_shown(self, tmp_path):
        """All commands of the first README in one shell, and what stands below each."""
        (session,) = blocks(READMES[0], "console")
        steps = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
        assert sum("python -m" in command for command, _ in steps) == 5
        mark = "-- the next command"
        script = "".join(f"{command}\necho '{mark}'\n" for command, _ in steps)
        done = subprocess.run(
            ["bash", "-euc", f"{self.stand_ins()}\n{script}"],
            capture_output=True,
            text=True,
            cwd=as_clone(tmp_path),
            env=environment(MLX_SPEECH_MODEL="./nowhere"),
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout.split(f"{mark}\n")
        assert printed.pop() == ""
        for (command, shown), output in zip(steps, printed, strict=True):
            assert_same(output.rstrip("\n"), shown.rstrip("\n"), command)

    @staticmethod
    def stand_ins() -> str:
        """This Python, and what `make demo` does once it has its own."""
        makefile = (ROOT / "Makefile").read_text()
        demo = re.search(r"^demo: .*\n\t@\$\(BIN\)/(python .*)\n\n", makefile, re.MULTILINE)[1]
        return f'python() {{ "{sys.executable}" "$@"; }}\nmake() {{ [ "$*" = demo ] && {demo}; }}'


def assert_same(printed: str, shown: str, where: str = "") -> None:
    """The same, but for times to 0.05 s; how large errors are and how long loading takes is free.

    Other processors round otherwise."""
    number = re.compile(r"\d+\.\d+e[-+]\d+|\d+[.,]\d+")
    assert number.sub("#", printed) == number.sub("#", shown), where
    for found, expected in zip_longest(number.findall(printed), number.findall(shown)):
        if "e" not in expected and not re.search(rf"{re.escape(expected)} s$", shown, re.MULTILINE):
            distance = float(found.replace(",", ".")) - float(expected.replace(",", "."))
            assert abs(distance) <= 0.05, (where, found, expected)


class TestLayout:
    def test_is_complete(self):
        shown = {ROOT / "mlx_speech": set(), ROOT / "convert": set()}
        for document in ("mlx_speech", "convert"):
            (layout,) = (
                block
                for block in blocks(ROOT / document / "README.md", "")
                if block.startswith(f"{document}/\n")
            )
            folders = [ROOT / document]
            for indent, names in re.findall(r"^( +)(\S.*?)(?:  .*)?$", layout, re.MULTILINE):
                del folders[len(indent) // 2 :]
                paths = [folders[-1] / name for name in names.split()]
                assert [path for path in paths if not path.exists()] == []
                shown[ROOT / document] |= set(paths)
                folders.append(paths[0])
        for folder, paths in shown.items():
            modules = {p for p in folder.rglob("*.py") if not p.name.startswith("__")}
            assert modules - paths == set()

    def test_is_legible(self):
        for document in DOCUMENTS:
            for block in blocks(document):
                assert max(map(len, block.splitlines())) <= 100

    def test_the_first_is_short(self):
        assert FIRST.count("\n") <= 150


class TestText:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=short)
    def test_links_lead_somewhere(self, document):
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)]+)\)", text):
            path, _, heading = link.partition("#")
            if not path.startswith("https://"):
                target = document.parent / path if path else document
                assert target.exists(), link
                headings = re.findall(r"^#+ (.*)", target.read_text(), re.M) if heading else ()
                anchors = {h.lower().replace(" ", "-") for h in headings}
                assert not heading or heading in anchors, link

    def test_public_names(self):
        """The package's README lists them all."""
        text = (ROOT / "mlx_speech" / "README.md").read_text()
        table = text[text.index("Everything that `from mlx_speech import` offers") :]
        rows = re.findall(r"^\| .*", table, re.MULTILINE)
        assert sorted(re.findall(r"`(\w+)`", "\n".join(rows))) == mlx_speech.__all__

    def test_files_of_tests(self):
        for name in re.findall(r"`(\w+\.\w+)`", (ROOT / "tests" / "README.md").read_text()):
            assert list((ROOT / "tests").rglob(name)), name
