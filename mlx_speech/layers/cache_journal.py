"""What is done to caches in one process, done to those of others: of heads that these have of the
same layers (tensor parallelism).

A model feeds the caches of all processes alike. What else is done to them, by whoever uses the
model in the one, is written down as JSON and done again in the others.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import mlx.core as mx

from ..errors import InputError
from .cache import KVCache, LatestOfLayer, LeftPadding, QuantizedKVCache, RotatingKVCache, twin

#: what was done, the number of the cache that it was done to, and what with
Entry = list[Any]


class CacheJournal:
    """What is done to some caches, from when each is made until nobody has it any more; any thread
    may do it.

    It is what is done to the first layer: to all layers, the same is.
    """

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._numbers = itertools.count()

    def recorded(
        self, cache: Sequence[KVCache], left_padding: LeftPadding, options: dict[str, Any]
    ) -> list[KVCache]:
        """A new cache, as one of which it is written down what is done to it.

        Args:
            left_padding, options: what it was made with; see `make_cache`.
        """
        first, *others = cache
        recorded = twin(first, _RECORDED[type(first)])
        padding = None if left_padding is None else [int(count) for count in left_padding]
        self.begin(recorded, "make", padding, options)
        return [recorded, *others]

    def number(self, cache: Sequence[KVCache]) -> int:
        """By which number this cache is known.

        Raises:
            InputError: it is none that was recorded here.
        """
        first = cache[0]
        if not isinstance(first, _Recorded) or first.journal is not self:
            raise InputError("past_key_values is a cache that this model's make_cache did not make")
        return first.number

    def note(self, done: str, *arguments: Any) -> None:
        """Write down what is done."""
        self._entries.append([done, *arguments])

    def begin(self, begun: _Recorded | _RecordedLatest, done: str, *arguments: Any) -> None:
        """Write down what something new came from, and in time that it is there no more."""
        begun.journal, begun.number = self, next(self._numbers)
        self.note(done, begun.number, *arguments)
        weakref.finalize(begun, self.note, "drop", begun.number).atexit = False

    def take(self) -> list[Entry]:
        """What was done since the last call, in its order."""
        taken = []
        while self._entries:  # others may add to them meanwhile
            taken.append(self._entries.popleft())
        return taken


class CacheMirror:
    """Caches to which is done what was done to others.

    Args:
        make_cache: makes an empty cache, as that of the model there.
    """

    def __init__(self, make_cache: Callable[..., list[KVCache]]):
        self._make_cache = make_cache
        self._layers: dict[int, list[Any]] = {}

    def __getitem__(self, number: int) -> list[KVCache]:
        return self._layers[number]

    def __len__(self) -> int:
        return len(self._layers)

    def replay(self, entries: Sequence[Entry]) -> None:
        """Do what a `CacheJournal` says."""
        for done, number, *arguments in entries:
            self._do(done, number, *arguments)

    def _do(self, done: str, number: int, *arguments: Any) -> None:
        match done, *arguments:
            case "make", left_padding, options:
                self._layers[number] = self._make_cache(left_padding, **options)
            case "copy", source:
                self._layers[number] = [copy.copy(layer) for layer in self[source]]
            case "latest", source, count:
                self._layers[number] = [layer.latest(count) for layer in self[source]]
            case "drop", *_:
                del self._layers[number]
            case "row", row, length:
                self._layers[number] = [layer.row(row, length) for layer in self[number]]
            case "extend", other:
                for layer, more in zip(self[number], self[other], strict=True):
                    layer.extend(more)
            case "reorder", rows:
                for layer in self[number]:
                    layer.reorder(mx.array(rows))
            case "trim", count:
                for layer in self[number]:
                    layer.trim(count)
            case "trim_rows", counts:
                for layer in self[number]:
                    layer.trim_rows(counts)


class _Recorded(KVCache):
    """The first layer of a cache of which it is written down what is done to it."""

    journal: CacheJournal
    number: int

    def trim(self, count: int) -> int:
        self.journal.note("trim", self.number, count)
        return super().trim(count)

    def trim_rows(self, counts: Sequence[int]) -> None:
        self.journal.note("trim_rows", self.number, list(counts))
        super().trim_rows(counts)

    def reorder(self, rows: mx.array) -> None:
        self.journal.note("reorder", self.number, rows.tolist())
        super().reorder(rows)

    def extend(self, other: Self) -> None:
        self.journal.note("extend", self.number, other.number)
        super().extend(other)

    def row(self, number: int, length: int) -> Self:
        alone = super().row(number, length)  # a copy, of which the rest is left out
        self.journal.note("row", alone.number, number, length)
        return alone

    def latest(self, count: int) -> LatestOfLayer:
        latest = _RecordedLatest(self, count)
        self.journal.begin(latest, "latest", self.number, count)
        return latest

    def __copy__(self) -> Self:
        other = super().__copy__()
        self.journal.begin(other, "copy", self.number)
        return other

    def __deepcopy__(self, memo: Any) -> Self:
        return copy.copy(self)  # that shares no array either


class _RecordedRotatingKVCache(_Recorded, RotatingKVCache):
    pass


class _RecordedQuantizedKVCache(_Recorded, QuantizedKVCache):
    pass


_RECORDED: dict[type[KVCache], type[_Recorded]] = {
    KVCache: _Recorded,
    RotatingKVCache: _RecordedRotatingKVCache,
    QuantizedKVCache: _RecordedQuantizedKVCache,
}


class _RecordedLatest(LatestOfLayer):
    journal: CacheJournal
    number: int

    def reorder(self, rows: mx.array) -> None:
        self.journal.note("reorder", self.number, rows.tolist())
        super().reorder(rows)
