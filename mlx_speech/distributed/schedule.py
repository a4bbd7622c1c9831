"""Who of several does what, and when they are done: tasks of known length, the longest first.

Longest first (R. L. Graham, "Bounds on Multiprocessing Timing Anomalies", 1969): whoever is free
takes the longest task that is left, so that the short ones at the end even out what lengths that
were guessed, and machines of other speeds, have made uneven.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

#: a recording is divided where it is longer than this share of what one rank has to do
_SHARE = 1 / 4


def numbers_of_parts(seconds: Sequence[float], ranks: int) -> list[int]:
    """How many parts each recording should have, so that all ranks are done at about one time.

    There are no more than ranks, as each part costs the reading of the whole recording.

    Args:
        seconds: their lengths.
    """
    longest = sum(seconds) / ranks * _SHARE
    return [min(ranks, max(1, round(each / longest))) if longest else 1 for each in seconds]


def longest_first(seconds: Sequence[float]) -> list[int]:
    """Positions, by falling lengths; of equal ones in their order."""
    return sorted(range(len(seconds)), key=lambda index: -seconds[index])


@dataclass
class TaskQueue(Generic[T]):
    """What is to be done next, and by which rank. Each rank has one; all that are told the same in
    the same order know the same."""

    tasks: list[T] = field(default_factory=list)
    _waiting: list[int] = field(default_factory=list)

    def ask(self, rank: int) -> None:
        """A rank is free."""
        self._waiting.append(rank)

    def add(self, tasks: Iterable[T]) -> None:
        """There is more to do, after all else."""
        self.tasks += tasks

    def remove(self, unneeded: Iterable[T]) -> None:
        """What need not be done any more."""
        gone = list(unneeded)
        self.tasks = [task for task in self.tasks if task not in gone]

    def assign(self) -> list[tuple[int, T]]:
        """The ranks that got something to do by what was told since the last time, and what."""
        number = min(len(self._waiting), len(self.tasks))
        assigned = list(zip(self._waiting[:number], self.tasks[:number], strict=True))
        del self._waiting[:number], self.tasks[:number]
        return assigned
