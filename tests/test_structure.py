"""The layers of the package: imports run downward only, and in no circle, wherever they stand; and
where files belong."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

#: from the top down; what stands side by side imports each other only from left to right
LAYERS = [
    ["convert", "transcribe", "chat", "generate", "serve", "benchmark", "finetune"],
    ["cli"],
    ["server"],
    ["chat_session", "output", "profiling"],
    ["training", "transcription"],
    ["auto", "loading"],
    ["processing"],
    ["models"],
    ["checkpoint"],
    ["generation"],
    ["layers", "audio", "distributed"],
    ["fields", "files", "errors", "signals", "mlx_speech"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted([*(ROOT / "mlx_speech").rglob("*.py"), *(ROOT / "convert").rglob("*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(name: str) -> set[str]:
    """Modules of ours that a module imports, at its top or inside a function."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{start}.{alias.name}"
                found.add(whole if whole in MODULES else start)
    return (found & MODULES.keys()) - {name}


IMPORTS = {name: imported(name) for name in MODULES}


def layer(name: str) -> str:
    """The folder or module that a module belongs to."""
    parts = name.split(".")
    return parts[1] if parts[0] == "mlx_speech" and len(parts) > 1 else parts[0]


def test_every_module_has_a_layer():
    assert {layer(name) for name in MODULES} == RANK.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downward(name):
    upward = {
        other
        for other in IMPORTS[name]
        if layer(other) != layer(name) and RANK[layer(other)] <= RANK[layer(name)]
    }
    beside = {other for other in upward if RANK[layer(other)] == RANK[layer(name)]}
    row = LAYERS[RANK[layer(name)]]
    allowed = {other for other in beside if row.index(layer(other)) > row.index(layer(name))}
    assert upward - allowed == set()


def test_no_circles():
    """Whatever order they are visited in, nobody is met again on the way down."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(IMPORTS[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_the_top_level_holds_what_it_should():
    """Of what belongs to the project: people's own files may lie there, too."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    shown = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    expected = "pyproject.toml README.md LICENSE Makefile mlx_speech convert tests examples"
    assert {name for name in shown if not name.startswith(".")} == set(expected.split())


def test_no_file_outgrows_its_subject():
    long = {
        name: lines
        for name, path in MODULES.items()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450
    }
    assert long == {}


#: what is no mirror of the package: against the reference, against damage, by the watch
APART = {"parity", "fuzz", "benchmarks"}
#: tests of the whole trip, which no module has to itself
TRIP = {"cases", "hour", "invented_text", "tiny_models"}


def test_tests_mirror_the_package():
    """tests/<folder>/test_<module>.py, or test_<module>_<subject>.py where that is much; but for
    the page of the server, which is one file."""
    astray = []
    for path in sorted((ROOT / "tests").glob("*/**/test_*.py")):
        top, *inner, _ = path.relative_to(ROOT / "tests").parts
        folder = ROOT.joinpath("convert" if top == "convert" else f"mlx_speech/{top}", *inner)
        if top in APART or folder.name == "page":
            continue
        subject = path.stem.removeprefix("test_")
        modules = {each.stem for each in folder.glob("*.py")}
        if not (subject in TRIP or any(f"{subject}_".startswith(f"{m}_") for m in modules)):
            astray.append(str(path.relative_to(ROOT)))
    assert astray == []


def test_all_packages_are_installed():
    """The list in pyproject.toml is kept by hand, since convert/ lies beside the package."""
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    packages = {f"mlx_speech.{name}" if name == "convert" else name for name in packages}
    assert set(re.findall(r'"(.+?)"', listed[1])) == packages
