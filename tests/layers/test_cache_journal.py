"""What is written down of caches makes others the same, whatever is done to them."""

from __future__ import annotations

import copy
import json
import random

import mlx.core as mx
import pytest

from mlx_speech import InputError
from mlx_speech.layers.cache import CACHE_OPTIONS, KVCache, LatestPositions, make_cache
from mlx_speech.layers.cache_journal import CacheJournal, CacheMirror

LAYERS, HEAD_DIM = 2, 32
KINDS = {
    "plain": {},
    "rotating": {"max_kv_size": 9},
    "quantized": {"kv_bits": 8, "kv_group_size": 32},
    "quantized later": {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 6},
}


def make(left_padding=None, **options) -> list[KVCache]:
    assert options.keys() <= set(CACHE_OPTIONS)
    return make_cache(LAYERS, left_padding, **options)


class Caches:
    """Some that are used at random, and their mirror, which is told as another process would be."""

    def __init__(self, seed: int, options: dict):
        self.random = random.Random(seed)
        self.options = options
        self.journal, self.mirror = CacheJournal(), CacheMirror(make)
        self.caches: list[list[KVCache]] = []
        self.done: set[str] = set()

    def some(self) -> list[KVCache]:
        return self.random.choice(self.caches)

    def make(self) -> None:
        rows = self.random.randint(1, 3)
        padding = None
        if "max_kv_size" not in self.options and self.random.random() < 0.3:
            padding = [self.random.randint(0, 2) for _ in range(rows)]
        made = make(padding, **self.options)
        cache = self.journal.recorded(made, padding, self.options)
        self.caches.append(cache)
        self.feed(cache, rows)

    def feed(self, cache: list[KVCache] | None = None, rows: int | None = None) -> None:
        """Both get the same, as by one command."""
        cache = self.some() if cache is None else cache
        rows = rows or len(cache[0].state[0])
        count = self.random.choice([1, 1, 2, 4])
        told = json.loads(json.dumps(self.journal.take()))
        self.mirror.replay(told)
        mirrored = self.mirror[self.journal.number(cache)]
        for layer, other in zip(cache, mirrored, strict=True):
            new = [mx.random.normal((rows, 2, count, HEAD_DIM)) for _ in range(2)]
            masks = layer.make_mask(count), other.make_mask(count)
            assert_same(*masks)
            assert_same(layer.offset, other.offset)
            got, theirs = layer.update_and_fetch(*new), other.update_and_fetch(*new)
            for one, another in zip(got, theirs, strict=True):
                assert_same(getattr(one, "data", one), getattr(another, "data", another))

    def trim(self) -> None:
        cache = self.some()
        count = self.random.randint(0, 3)
        for layer in cache:
            layer.trim(count)

    def trim_rows(self) -> None:
        cache = self.some()
        if cache[0].padded or not cache[0].is_trimmable():
            return
        counts = [self.random.randint(0, min(2, n)) for n in cache[0].row_lengths]
        for layer in cache:
            layer.trim_rows(counts)

    def reorder(self) -> None:
        cache = self.some()
        rows = len(cache[0].state[0])
        chosen = [self.random.randrange(rows) for _ in range(self.random.randint(1, 3))]
        for layer in cache:
            layer.reorder(mx.array(chosen))

    def row(self) -> None:
        cache = self.some()
        if cache[0].padded or cache[0].max_size is not None:
            return
        row = self.random.randrange(len(cache[0].state[0]))
        length = self.random.randint(1, max(1, cache[0].row_lengths[row]))
        self.caches.append([layer.row(row, length) for layer in cache])

    def copy(self) -> None:
        copied = self.random.choice([copy.copy, copy.deepcopy])
        self.caches.append([copied(layer) for layer in self.some()])
        self.reorder_all(self.caches[-1])

    def reorder_all(self, cache: list[KVCache]) -> None:
        """As everywhere after a copy, which shares what is written to."""
        for layer in cache:
            layer.reorder(mx.arange(len(layer.state[0])))

    def extend(self) -> None:
        cache, other = self.some(), self.some()
        kinds = {len(c[0].state) for c in (cache, other)}
        if cache is other or len(kinds) > 1 or cache[0].padded or other[0].padded:
            return
        if cache[0].max_size is not None or len(cache[0].state[0]) > 3:
            return
        for layer, more in zip(cache, other, strict=True):
            layer.extend(more)
        self.caches = [each for each in self.caches if each is not other]

    def latest(self) -> None:
        """As in a beam search: steps that are undone, rows that trade places."""
        cache = self.some()
        if cache[0].lengths is not None or cache[0].length < 2:
            return
        rows = len(cache[0].state[0])
        latest = LatestPositions(cache, self.random.randint(0, 2))
        for _ in range(self.random.randint(1, 2)):
            latest.reorder(mx.array([self.random.randrange(rows) for _ in range(rows)]))
            self.feed(cache)

    def drop(self) -> None:
        if len(self.caches) > 2:
            self.caches.remove(self.some())

    def compare(self) -> None:
        self.mirror.replay(json.loads(json.dumps(self.journal.take())))
        assert len(self.mirror) == len(self.caches)
        for cache in self.caches:
            for layer, other in zip(cache, self.mirror[self.journal.number(cache)], strict=True):
                assert (layer.length, layer.lengths) == (other.length, other.lengths)
                assert_same(layer.offset, other.offset)
                assert len(layer.state) == len(other.state)
                # what is behind a row's length means nothing
                for part, theirs in zip(layer.stored(), other.stored(), strict=True):
                    for row, length in enumerate(layer.row_lengths):
                        assert_same(part[row, :, :length], theirs[row, :, :length])


def assert_same(one: object, other: object) -> None:
    if isinstance(one, mx.array):
        assert isinstance(other, mx.array)
        assert mx.array_equal(one, other).item()
    else:
        assert one == other


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", KINDS)
def test_mirror(kind, seed):
    caches = Caches(seed, KINDS[kind])
    names = ["make", "feed", "feed", "feed", "trim", "trim_rows", "reorder", "row", "copy"]
    names += ["extend", "latest", "drop", "compare"]
    caches.make()
    for _ in range(60):
        getattr(caches, caches.random.choice(names))()
    caches.compare()


def test_each_is_written_down_once():
    journal = CacheJournal()
    cache = journal.recorded(make([0, 1]), [0, 1], {})
    new = mx.zeros((2, 1, 3, 4))
    for layer in cache:
        layer.update_and_fetch(new, new)
    for layer in cache:
        layer.trim(1)
        layer.reorder(mx.array([1, 0, 1]))
    alone = [layer.row(2, 1) for layer in cache]
    assert journal.take() == [
        ["make", 0, [0, 1], {}],
        ["trim", 0, 1],
        ["reorder", 0, [1, 0, 1]],
        ["copy", 1, 0],
        ["row", 1, 2, 1],
    ]
    del alone
    assert journal.take() == [["drop", 1]]


def test_others_are_refused():
    journal = CacheJournal()
    theirs = CacheJournal().recorded(make(), None, {})
    for cache in (make(), theirs):
        with pytest.raises(InputError, match="did not make"):
            journal.number(cache)
