"""Regular expressions of adapters: Python's, compiled and matched within limits."""

from __future__ import annotations

import pytest

from mlx_speech.errors import CheckpointError, InputError
from mlx_speech.layers import patterns
from mlx_speech.layers.patterns import Patterns

NAME = "language_model.model.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        (r".*\.q_proj", True),
        (r"q_proj", False),  # the whole name
        (r"(?!.*vision).*\.[qv]_proj", True),
        (r".*layers\.\d{1,2}\..*", True),
    ],
)
def test_whole_names(expression, matches):
    found = Patterns()
    found.check("field", expression)
    assert (found.match("field", expression, NAME) is not None) == matches


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(", "unterminated subpattern"),
        ("*", "nothing to repeat"),
        ("(?R)", "unknown extension"),
        ("a{e", "expected }"),  # which Python's own library compiles
        ("a" * 10_001, "more than 10000 characters"),
        ("a{1000000000}", "more than 10000 repetitions"),
        ("(((a{99}){99}){99})+", "more than 10000 repetitions"),
        ("a{4294967295}", "the repetition number is too large"),
        ("(" * 3000 + ")" * 3000, "recursion"),
    ],
)
def test_what_is_not_compiled(expression, said):
    with pytest.raises(InputError, match=f"field is .* regular expression that can .*{said}"):
        Patterns().check("field", expression)


def test_what_takes_forever(monkeypatch):
    """For all names together, so that a second one does not start anew."""
    monkeypatch.setattr(patterns, "_SECONDS", 0.05)
    found = Patterns()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"field takes more than 0\.05 s to match with"):
            found.match("field", r"(\w|\w\w|\.|\.\w)*(?:x|y)", NAME)
