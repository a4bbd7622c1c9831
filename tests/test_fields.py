"""Values out of JSON: their types and ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech.errors import InputError, one_line
from mlx_speech.fields import Range, fit_fields, fit_items, fitted

Count = Annotated[int, Range(1, 2**20)]
Share = Annotated[float, Range(0, 1, exclusive=True)]


@dataclass
class Part:
    width: Count = 4


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (8.0, int, 8),
        (8, Count, 8),
        (8, float, 8),
        (np.float32(0.5), Share, 0.5),
        (np.int64(3), Count, 3),
        (np.bool_(True), bool, True),
        (mx.array(3), Count, 3),
        (np.array([1, 2]), list[Count], [1, 2]),
        (1, Share, 1),
        (None, Count | None, None),
        (2.0, Count | list[Count] | None, 2),
        ([2.0, 3], Count | list[Count] | None, [2, 3]),
        ((5, 5), Sequence[Count], (5, 5)),
        ("never", bool | Literal["never"], "never"),
        ({"a": []}, dict, {"a": []}),
        ({"a": 2.0}, dict[str, Count], {"a": 2}),
        ({"width": 4}, Part, {"width": 4}),
        (object, Any, object),
    ],
)
def test_what_fits(value, hint, expected):
    found = fitted("field", value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "rule"),
    [
        (8.5, int, "an integer"),
        (True, int, "an integer"),
        ("8", int, "an integer"),
        (1, bool, "true or false"),
        (None, str, "text"),
        (float("nan"), float, "a finite number"),
        (float("inf"), int, "an integer"),
        (10**400, float, "a finite number"),
        (-(10**400), Count, "an integer, at least 1 and at most 1048576"),
        (0, Count, "an integer, at least 1 and at most 1048576"),
        (0, Share, "a finite number, above 0 and at most 1"),
        (float("nan"), Share, "a finite number, above 0 and at most 1"),
        ([1, 0], list[Count], "a list in which each is an integer, at least 1 and at most 1048576"),
        ("ab", list[str], "a list in which each is text"),
        (5, list, "a list"),
        ({"a": "b"}, dict[str, int], "an object in which each is an integer"),
        ([], dict[str, int], "an object in which each is an integer"),
        ([], Part, "an object"),
        (0, Count | None, "an integer, at least 1 and at most 1048576"),
        ("late", bool | Literal["never"], "true or false or 'never'"),
    ],
)
def test_what_does_not(value, hint, rule):
    with pytest.raises(InputError) as raised:
        fitted("field", value, hint)
    assert str(raised.value) == one_line(f"field is {value!r}, but must be {rule}")


@pytest.mark.parametrize("frozen", [True, False])
def test_the_fields_of_a_dataclass(frozen):
    @dataclass(frozen=frozen)
    class Settings:
        count: Annotated[int, Range(1)] = 3
        derived: Annotated[int, Range(1)] = None
        extra: dict = None

    settings = Settings(count=5.0)
    fit_fields(settings)
    assert settings == Settings(count=5, derived=None)
    assert type(settings.count) is int
    with pytest.raises(InputError, match="derived is 0, but must be an integer, at least 1"):
        fit_fields(Settings(derived=0))
    with pytest.raises(InputError, match="count is None, but must be an integer"):
        fit_fields(Settings(count=None))


def test_the_items_of_a_dict():
    class Sizes(TypedDict, total=False):
        width: Annotated[int, Range(most=9)]

    assert fit_items(Sizes, {"width": 2.0, "other": "kept"}) == {"width": 2, "other": "kept"}
    with pytest.raises(InputError, match=r"sizes\.width is 10, but must be an integer, at most 9"):
        fit_items(Sizes, {"width": 10}, "sizes.")
