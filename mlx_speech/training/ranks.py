"""The ranks that train together, each on its share of a batch; a process alone is one of one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self, TypeVar

import mlx.core as mx

from ..distributed.digests import version_facts
from ..distributed.launched import rank_of_launch
from ..errors import InputError
from .options import FineTuneOptions

if TYPE_CHECKING:
    from ..distributed.group import Group

T = TypeVar("T")

#: how long a rank waits for the others, of which one may have a step or a recording of minutes
TIMEOUT_SECONDS = 600.0
#: options that are of one machine's disk, and may be others on another
_LOCAL = ("adapter_path", "cache_limit")


class Ranks:
    """What the ranks of a group tell each other in training. All have to call the same in the same
    order; what waits for others raises a `DistributedError` where one is lost, and ends the process
    after `TIMEOUT_SECONDS` (see `Group`).

    Within it as a context, errors of MLX about lost ranks are `DistributedError`s, too.

    Args:
        group: None if this process is alone.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, group: Group | None):
        self._group = group
        self.rank: int = 0 if group is None else group.rank
        self.size: int = 1 if group is None else group.size
        if group is not None:
            group.timeout = TIMEOUT_SECONDS
        self._expected = ExitStack()

    @classmethod
    def of_launch(cls) -> Self:
        """Those that this process was launched with, by `mlx.launch` say.

        Raises:
            DistributedError: they cannot be reached.
        """
        if rank_of_launch() is None:
            return cls(None)
        from ..distributed.group import Group

        return cls(Group.start())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._expected.__exit__(*error)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def expect(self) -> None:
        """From now on, until the next call of another method, MLX itself may wait for others."""
        self._expected.close()
        if self._group is not None:
            self._expected.enter_context(self._group.waiting())

    def gather(self, said: Any = None) -> list[Any]:
        """What each says, by rank; what JSON can say."""
        self._expected.close()
        if self._group is None:
            return [said]
        return [json.loads(each) for each in self._group.gather(json.dumps(said).encode())]

    def broadcast(self, said: Any) -> Any:
        """What the first says."""
        return self.gather(said if self.first else None)[0]

    def any(self, said: bool) -> bool:
        """Whether one says so."""
        return any(self.gather(said))

    def totals(self, *numbers: float) -> list[float]:
        """Their sums over all."""
        return [sum(each) for each in zip(*self.gather(numbers), strict=True)]

    def rounds(
        self, items: Sequence[T], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[T]:
        """Items of this rank, one at a time: the next when all have done theirs, so that none waits
        longer for another than for one.

        Args:
            progress: called with how many are done by all, and of how many.
        """
        numbers = self.gather(len(items))
        for done in range(1, max(numbers) + 1):
            if done <= len(items):
                yield items[done - 1]
            self.gather()
            if progress is not None:
                progress(sum(min(done, number) for number in numbers), sum(numbers))

    def arrays(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Those of the first; what others give does not count."""
        if self._group is None:
            return dict(arrays)
        about = [[n, a.shape, str(a.dtype).rpartition(".")[2]] for n, a in arrays.items()]
        found = {}
        for name, shape, dtype in self.broadcast(about):
            given = arrays[name] if self.first else mx.zeros(shape, getattr(mx, dtype))
            with self._group.waiting():
                group = self._group.distributed
                found[name] = mx.distributed.all_sum(given, group=group, stream=mx.cpu)
                mx.eval(found[name])
        return found

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Raises a `DistributedError` where the facts of one are others (see `Group`)."""
        self._expected.close()
        if self._group is not None:
            self._group.check_same({name: str(value) for name, value in facts.items()})

    def check_options(self, options: FineTuneOptions) -> None:
        """Check that all have the same options and versions, and that a batch can be shared.

        Raises:
            InputError: it cannot.
            DistributedError: they have not.
        """
        if options.batch_size % self.size:
            rule = f"a multiple of {self.size}, as each of {self.size} ranks has a share of a batch"
            raise InputError.must_be("batch_size", options.batch_size, rule)
        versions = {**version_facts(), "mlx-lm": version("mlx-lm")}
        chosen = {name: each for name, each in asdict(options).items() if name not in _LOCAL}
        self.check_same(versions | chosen)


def digest_of(content: Any) -> str:
    """A short hash of what JSON can say."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
