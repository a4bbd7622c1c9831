"""What values the fields of a JSON file may have: written once, as their annotations.

    width: Annotated[int, Range(1, 4096)] = 256
    epsilon: Annotated[float, Range(0, 1)] = 1e-5

JSON has one kind of number, so 8.0 is an integer, too. What float32 cannot hold is no number here,
and neither are true and false.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import InputError

_LARGEST = 3.4028234663852886e38  # of float32


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, without `least` itself where it is `exclusive`."""

    least: float = -_LARGEST
    most: float = _LARGEST
    exclusive: bool = False

    def __contains__(self, value: Any) -> bool:
        return self.least <= value <= self.most and not (self.exclusive and value == self.least)

    def __str__(self) -> str:
        told = []
        if self.least > -_LARGEST:
            told.append(f"{'above' if self.exclusive else 'at least'} {_shown(self.least)}")
        if self.most < _LARGEST:
            told.append(f"at most {_shown(self.most)}")
        return " and ".join(told)


TokenId = Annotated[int, Range(-1, 2**31 - 1)]  #: -1 says that there is none


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def fit_fields(instance: Any) -> None:
    """Give the fields of a dataclass the types that they are annotated with.

    A field may be None where its default is.

    Raises:
        InputError: a value is of another type, or out of its range.
    """
    kind: Any = type(instance)
    hints = _hints(kind)
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if value is not None or field.default is not None:
            fit = fitted(field.name, value, hints[field.name])
            object.__setattr__(instance, field.name, fit)  # also where the dataclass is frozen


def fit_items(kind: type, values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The same values in the types that a TypedDict has for them; others are left as they are.

    Args:
        prefix: of the names in a message.

    Raises:
        InputError: a value is of another type, or out of its range.
    """
    hints = _hints(kind)
    return {k: fitted(f"{prefix}{k}", v, hints.get(k, Any)) for k, v in values.items()}


def fitted(name: str, value: Any, hint: Any) -> Any:
    """A value of JSON, or what is like one to a caller, in the type of an annotation.

    Args:
        name: of the field, for a message, which leaves out that it may be null.
        hint: a type of JSON, a list, a sequence or a dict by name of one, a dataclass (or what it
            is made from, a dict), a Literal, a union of these, or one of them `Annotated` with a
            `Range`.

    Raises:
        InputError: it is of another type, or out of its range.
    """
    try:
        return _fitted(value, hint)
    except ValueError:
        raise InputError.must_be(name, value, _rule(hint)) from None


def _fitted(value: Any, hint: Any) -> Any:
    """As `fitted`, with a ValueError that says nothing."""
    if getattr(value, "ndim", None) in (0, 1):  # a number, or a list of them, as an array
        value = value.tolist()
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (UnionType, Union):
        for member in arguments:
            try:
                return _fitted(value, member)
            except ValueError:
                continue
        raise ValueError
    if kind is Annotated:
        value = _fitted(value, arguments[0])
        fits = value in arguments[1]
    elif kind is Literal:
        fits = value in arguments
    elif kind in (list, Sequence) and arguments:
        fits = isinstance(value, list | tuple)
        value = type(value)(_fitted(item, arguments[0]) for item in value) if fits else value
    elif kind is dict and arguments:
        fits = isinstance(value, dict)
        value = {k: _fitted(v, arguments[1]) for k, v in value.items()} if fits else value
    elif kind in (int, float):
        fits = isinstance(value, Real) and not isinstance(value, bool) and value in Range()
        if fits and kind is int and not isinstance(value, Integral):
            fits, value = value == int(value), int(value)
    else:
        fits = kind is Any or isinstance(value, (kind, dict) if _is_dataclass(kind) else kind)
    if not fits:
        raise ValueError
    return value


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


_WORDS = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    list: "a list",
}


def _rule(hint: Any) -> str:
    """What values an annotation allows, in words."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (UnionType, Union):
        return " or ".join(_rule(member) for member in arguments if member is not NoneType)
    if kind is Annotated:
        return f"{_rule(arguments[0])}, {arguments[1]}"
    if kind is Literal:
        return " or ".join(map(repr, arguments))
    if kind in (list, Sequence) and arguments:
        return f"a list in which each is {_rule(arguments[0])}"
    if kind is dict and arguments:
        return f"an object in which each is {_rule(arguments[1])}"
    return _WORDS.get(kind, "an object")
