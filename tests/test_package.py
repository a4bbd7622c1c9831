"""The package's face: its names, and what importing it costs."""

import re
import subprocess
import sys
import tomllib
from types import ModuleType

import pytest
from conftest import ROOT

import mlx_speech
from mlx_speech import errors


def test_every_public_name_is_there():
    for name in mlx_speech.__all__:
        assert not isinstance(getattr(mlx_speech, name), ModuleType)
        assert name in dir(mlx_speech)
        assert getattr(mlx_speech, name).__doc__, name


def test_version():
    """The same wherever it is told; the latest changes may have none yet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert mlx_speech.__version__ == project["version"]
    sections = re.findall(r"^## (\S+)", (ROOT / ".github" / "CHANGELOG.md").read_text(), re.M)
    released = [section for section in sections if section != "Unreleased"]
    assert released[0] == mlx_speech.__version__
    assert sections.index(released[0]) <= 1


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        mlx_speech.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("name", "home"), [("transcribe", "transcription.pipeline"), ("generate", "generation.text")]
)
def test_command_line_does_not_hide_the_function(name, home):
    """Whichever of the two is imported first."""
    for first in (f"from mlx_speech import {name}", f"import mlx_speech.{name}"):
        code = (
            f"{first}\n"
            f"import mlx_speech\n"
            f"from mlx_speech.{name} import main\n"
            f"from mlx_speech import {name}\n"
            f"print(type({name}).__name__, {name}.__module__, mlx_speech.{name} is {name})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"function mlx_speech.{home} True\n"


def test_import_is_lazy_and_needs_no_training_stack():
    """Transcribing needs neither torch nor transformers."""
    code = (
        "import sys\n"
        "import mlx_speech\n"
        "assert not {'mlx', 'numpy'} & set(sys.modules)\n"
        "for name in mlx_speech.__all__: getattr(mlx_speech, name)\n"
        "print(sorted({'torch', 'transformers', 'mlx_lm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_errors_have_one_base():
    found = [e for e in vars(errors).values() if getattr(e, "__module__", "") == errors.__name__]
    found = [e for e in found if isinstance(e, type)]
    assert len(found) == 8
    assert all(issubclass(e, errors.MlxSpeechError) for e in found)
