"""The models that have been released: what --list-models and the README say."""

from __future__ import annotations

import re
from importlib import import_module

import commands
import pytest
from conftest import ROOT

from mlx_speech.cli.released import RELEASED, list_models
from mlx_speech.processing.prompts import prompt_style

GRANITE = RELEASED["Granite Speech"]
#: column of the README's table -> what it has there
COLUMNS = {
    "repository": lambda release: f"`{release.repository}`",
    "size": lambda release: release.size,
    "languages": lambda release: release.languages,
    "translation": lambda release: release.targets,
    "punctuation": lambda release: "yes" if release.punctuation else "",
    "keywords": lambda release: "yes" if release.keywords else "",
    "speakers": lambda release: "yes" if release.speakers else "",
    "times": lambda release: release.times,
    "streaming": lambda release: release.streams,
    "license": lambda release: release.license,
}


def line(cells) -> str:
    return f"| {' | '.join(cells)} |"


class TestModels:
    def test_list(self):
        assert commands.run("transcribe", "--list-models") == (0, list_models(), "")
        assert max(map(len, list_models().splitlines())) <= 80

    @pytest.mark.parametrize("release", [r for rows in RELEASED.values() for r in rows])
    def test_what_the_list_says(self, release):
        heading = rf"^  {re.escape(release.repository)} +(\S+) GB  (\S+)\n((?: {{6}}.*\n)+)"
        ((size, license, able),) = re.findall(heading, list_models(), re.MULTILINE)
        assert (float(size), license) == (release.gigabytes, release.license)
        languages, *translation, rest = " ".join(able.split()).split("; ")
        assert languages == release.languages
        assert translation == ([f"translates to {release.targets}"] if release.targets else [])
        *options, times, streams = rest.split(", ")
        assert options == [
            n for n in ("punctuation", "keywords", "speakers") if getattr(release, n)
        ]
        assert (times, streams) == (f"times of {release.times}", f"streams {release.streams}")

    def test_the_readme_has_them(self):
        """A row for each Granite Speech, and one for all of Speech2Text."""
        readme = (ROOT / "README.md").read_text()
        rows = [line(cell(release) for cell in COLUMNS.values()) for release in GRANITE]
        assert "\n".join([line(COLUMNS), "|" + "---|" * len(COLUMNS), *rows]) in readme
        (others,) = re.findall(r"^\| `facebook/s2t-…` .*", readme, re.MULTILINE)
        others = [cell.strip() for cell in others.strip("|").split("|")]
        others = dict(zip(COLUMNS, others, strict=True))
        sizes = sorted(release.gigabytes for release in RELEASED["Speech2Text"])
        assert others.pop("size") == f"{sizes[0]} to {sizes[-1]} GB"
        assert others.pop("repository")
        assert others.pop("translation") == "some"
        for release in RELEASED["Speech2Text"]:
            assert others == {name: COLUMNS[name](release) for name in others}

    def test_the_default_is_the_first(self):
        default = import_module("mlx_speech.transcription.pipeline").DEFAULT_MODEL
        assert GRANITE[0].repository == default

    @pytest.mark.parametrize("release", GRANITE)
    def test_what_the_prompts_can(self, release):
        """What is said of a model with prompts is what it may be asked."""
        name = release.repository
        if name.endswith("-nar") or "turboctc" in name:
            pytest.skip("takes no prompt")
        model_type = "granite_speech_plus" if name.endswith("-plus") else "granite_speech"
        style = prompt_style(model_type, 49159 if "3.3" in name else 100352, name)
        assert sorted(release.languages.split()) == sorted(style.languages)
        assert sorted(release.targets.split()) == sorted(style.targets)
        assert release.punctuation == style.punctuates
        assert release.keywords == ("transcribe" in style.keyword_tasks)
        assert release.speakers == ("speakers" in style.tags)
