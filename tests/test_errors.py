"""Errors that carry the options they are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_speech.cli.console import as_option
from mlx_speech.errors import ContextLengthError, InputError, one_line


def test_options_are_called_as_in_the_library_unless_spelled_otherwise():
    error = InputError.about(
        "{option} is {value!r}; leave out {num_beams}", option="top_k", value=3
    )
    assert str(error) == "top_k is 3; leave out num_beams"
    assert error.spelled(as_option) == "--top-k is 3; leave out --num-beams"
    assert isinstance(error, ValueError)


def test_values_are_never_taken_for_options():
    error = InputError.about("{seed} is {value!r}", value="{top_k} seed")
    assert str(error) == "seed is '{top_k} seed'"
    assert error.spelled(as_option) == "--seed is '{top_k} seed'"


def test_a_plain_message_stays_as_it_is():
    error = InputError("{top_k} seed")
    assert str(error) == error.spelled(as_option) == "{top_k} seed"


@pytest.mark.parametrize(
    "error",
    [ContextLengthError("too long"), ContextLengthError.about("{max_new_tokens}: {n}", n=3)],
)
def test_a_hint_is_added_and_the_options_stay(error):
    hinted = error.with_hint("/reset helps")
    assert type(hinted) is ContextLengthError
    assert str(hinted) == f"{error}; /reset helps"
    assert hinted.spelled(as_option) == f"{error.spelled(as_option)}; /reset helps"


class TestOneLine:
    @pytest.mark.parametrize(
        ("message", "line"),
        [
            ("two\nlines\r\n  and more\n", "two lines and more"),
            ("a  name .wav", "a  name .wav"),
            ("  indented", "  indented"),
            ("\x1b[1;31mred\x1b[0m", "red"),
            ("\x1b]0;title\x07\x1b]8;;http://a.b\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("bell\x07, null\0, \u202ereversed", "bell\\x07, null\\x00, \\u202ereversed"),
            ("café \udce9", "café \\udce9"),
            ("", ""),
        ],
    )
    def test_no_control_characters(self, message, line):
        assert one_line(message) == line
        assert str(InputError(message)) == InputError(message).spelled(as_option) == line

    @pytest.mark.parametrize("value", ["x" * 100_000, "x y " * 25_000, "x\n" * 50_000])
    @pytest.mark.parametrize("quote", ["{value}", "{value!r}"])
    def test_what_is_quoted_loses_its_middle(self, value, quote):
        template = f"{{option}} is {quote}, but must be short; leave out {{num_beams}}"
        error = InputError.about(template, option="top_k", value=value)
        for line in (str(error), error.spelled(as_option)):
            assert len(line) <= 300
            assert line.isprintable()
            assert "…" in line
            assert line.lstrip("-").startswith(("top_k is", "top-k is"))
            assert line.endswith((", but must be short; leave out num_beams", "--num-beams"))

    def test_all_that_is_said_beside_a_long_value_stays(self):
        """Before, between and after."""
        said = ("said before " * 2, "said between " * 2, "what to do " * 2)
        line = one_line(f"{said[0]}{'a' * 400} {said[1]}'{'b c' * 400}' {said[2]}")
        assert len(line) <= 300
        assert all(part in line for part in said)

    @pytest.mark.parametrize("message", [f"'{'a' * 200}' {'b' * 97}", "a list, " * 50])
    def test_a_message_that_is_hardly_too_long_stays(self, message):
        assert len(message) in (300, 400)
        assert one_line(message) == message
        assert len(one_line(f"{message}{message}")) <= 300

    def test_a_message_within_another(self):
        inner = InputError("two words " * 9999 + "; leave them out")
        assert len(str(inner)) == len(one_line(f"a.wav: {inner}")) == 300
        assert str(InputError(f"a.wav: {inner}")).endswith("; leave them out")


@pytest.mark.parametrize("template", [False, True])
def test_another_path(template):
    """Options stay what they are, to be spelled as on a command line."""
    path, to = Path("/tmp") / ("x" * 400), Path("/model")
    text = "{path}: too small; raise {top_k}"
    if template:
        error = InputError.about(text, path=path)
    else:
        error = InputError(text.format(path=path, top_k="top_k"))
    found = error.renamed(path, to)
    assert str(found) == "/model: too small; raise top_k"
    assert type(found) is InputError
    if template:
        assert found.spelled(lambda name: f"--{name}") == "/model: too small; raise --top_k"
