"""Telling a text that has run into a loop."""

from collections.abc import Sequence

#: a loop is the same few tokens, at most `LONGEST_PERIOD`, again and again: at least `LEAST_TIMES`,
#: and `LEAST_TOKENS` in all ("eight eight eight eight" is a telephone number)
LONGEST_PERIOD = 24
LEAST_TIMES = 5
LEAST_TOKENS = 20


def find_loop(tokens: Sequence[int]) -> int | None:
    """Where a loop begins to repeat itself: the tokens before say everything once.

    Returns:
        The index after the first round of the first loop, `None` where there is no loop.
    """
    found = (_loop_of(tokens, period) for period in range(1, LONGEST_PERIOD + 1))
    return min((start for start in found if start is not None), default=None)


def _loop_of(tokens: Sequence[int], period: int) -> int | None:
    enough = max(LEAST_TIMES * period, LEAST_TOKENS)
    length = period  # of the stretch up to here in which each token is the one `period` before
    for index in range(period, len(tokens)):
        length = length + 1 if tokens[index] == tokens[index - period] else period
        if length >= enough:
            return index + 1 - length + period
    return None
