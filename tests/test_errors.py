"""Errors that carry the options they are about."""

from __future__ import annotations

import pytest

from mlx_speech.cli.console import as_option
from mlx_speech.errors import ContextLengthError, InputError


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
