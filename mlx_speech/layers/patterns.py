"""Regular expressions out of files, which may be crafted so that they take forever."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING

from ..errors import CheckpointError, InputError

if TYPE_CHECKING:
    import regex

_SECONDS = 2.0  # of matching; milliseconds are usual
_LONGEST = 10_000  # characters of an expression
_MOST_REPETITIONS = 10_000  # the product of all counted ones: the regex library writes them out


class Patterns:
    """The regular expressions of one adapter_config.json, in Python's syntax.

    All that is matched with them together has a limit in time.
    """

    def __init__(self):
        self._seconds_left = _SECONDS

    def check(self, field: str, expression: str) -> None:
        """Compile an expression.

        Args:
            field: where it stands.

        Raises:
            InputError: it is none, or too long.
        """
        try:
            _compiled(expression)
        except (ValueError, re.error, RecursionError, OverflowError) as error:
            rule = f"a regular expression that can be compiled ({error})"
            raise InputError.must_be(field, expression, rule) from error

    def match(self, field: str, expression: str, name: str) -> regex.Match[str] | None:
        """Match a whole name with an expression that was checked.

        Raises:
            CheckpointError: time is up.
        """
        pattern, start = _compiled(expression), perf_counter()
        try:
            return pattern.fullmatch(name, timeout=max(self._seconds_left, 0.001))
        except TimeoutError as error:
            raise CheckpointError(
                f"adapter_config.json: {field} takes more than {_SECONDS:g} s to match with the "
                f"names of modules: {expression!r}"
            ) from error
        finally:
            self._seconds_left -= perf_counter() - start


@lru_cache
def _compiled(expression: str) -> regex.Pattern[str]:
    import regex

    if len(expression) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST} characters")
    # the syntax is that of this library; regex has more, such as recursion
    re.compile(expression)
    if math.prod(max(int(n), 1) for n in re.findall(r"\{([0-9]+)", expression)) > _MOST_REPETITIONS:
        raise ValueError(f"it has more than {_MOST_REPETITIONS} repetitions")
    try:
        return regex.compile(expression)
    except regex.error as error:
        raise ValueError(str(error)) from error
