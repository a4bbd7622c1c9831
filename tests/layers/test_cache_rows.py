"""Rows of different lengths in a key-value cache: each is what it is alone."""

from __future__ import annotations

import copy

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech.layers.attention import scaled_dot_product_attention
from mlx_speech.layers.cache import KVCache, make_cache

KINDS = [{}, {"kv_bits": 8, "kv_group_size": 32}, {"kv_bits": 4, "kv_group_size": 32}]
KINDS += [{"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 12}]


class Rows:
    """Caches beside what should be in them: one of several rows, and one alone of each."""

    def __init__(self, count: int, options: dict, seed: int = 0):
        self.options, self.rng = options, np.random.default_rng(seed)
        (self.cache,) = make_cache(1, **options)
        self.alone = [make_cache(1, **options)[0] for _ in range(count)]

    def feed(self, count: int) -> None:
        """New positions: attention of each row is what it is alone."""
        shape = len(self.alone), 4, count, 32
        q, k, v = (mx.array(self.rng.normal(size=shape), mx.float32) for _ in range(3))
        k, v = k[:, :2], v[:, :2]
        found = self.attend(self.cache, q, k, v)
        for row, cache in enumerate(self.alone):
            expected = self.attend(cache, *(part[row : row + 1] for part in (q, k, v)))
            assert mx.abs(found[row] - expected[0]).max().item() < 1e-5

    @staticmethod
    def attend(cache, q, k, v) -> mx.array:
        mask = cache.make_mask(q.shape[2])
        return scaled_dot_product_attention(
            q, *cache.update_and_fetch(k, v), scale=32**-0.5, mask=mask
        )

    def trim(self, counts: list[int]) -> None:
        self.cache.trim_rows(counts)
        for cache, count in zip(self.alone, counts, strict=True):
            cache.trim(count)

    def check(self) -> None:
        """What each row holds is what it holds alone."""
        assert self.cache.row_lengths == [cache.length for cache in self.alone]
        assert self.cache.length == max(self.cache.row_lengths)
        assert (self.cache.lengths is None) == (len({*self.cache.row_lengths}) == 1)
        for row, cache in enumerate(self.alone):
            for found, part in zip(self.cache.stored(), cache.stored(), strict=True):
                assert mx.array_equal(found[row : row + 1, :, : cache.length], part).item()


@pytest.mark.parametrize("options", KINDS, ids=str)
class TestRowsOfDifferentLengths:
    def test_each_is_what_it_is_alone(self, options):
        """Through steps of one and of several positions, and past the room that was made."""
        rows = Rows(3, options)
        for count, counts in [
            (15, [2, 0, 1]),
            (1, [0, 0, 0]),
            (8, [7, 3, 0]),
            (250, [0, 100, 0]),
            (8, [1, 7, 7]),
            (1, [0, 1, 0]),
            (2, [2, 0, 2]),
        ]:
            rows.feed(count)
            rows.trim(counts)
            rows.check()

    def test_the_same_length_again(self, options):
        """Then there is no mask but the causal one."""
        rows = Rows(2, options)
        rows.feed(13)
        rows.trim([3, 1])
        assert rows.cache.offset.tolist() == [10, 12]
        rows.trim([0, 2])
        assert rows.cache.offset == 10
        assert rows.cache.make_mask(2) == "causal"
        rows.feed(3)
        rows.check()

    def test_rows_leave_and_come(self, options):
        rows, others = Rows(3, options), Rows(2, options, seed=1)
        rows.feed(14)
        rows.trim([1, 0, 1])
        others.feed(300)
        others.trim([5, 0])
        rows.cache.reorder(mx.array([2, 0]))
        rows.alone = [rows.alone[2], rows.alone[0]]
        rows.check()
        assert rows.cache.lengths is None
        rows.cache.extend(others.cache)
        rows.alone += others.alone
        rows.check()
        for count, counts in [(4, [3, 0, 2, 1]), (1, [0] * 4)]:
            rows.feed(count)
            rows.trim(counts)
            rows.check()
        rows.cache.reorder(mx.array([3, 3, 1]))
        rows.alone = [rows.alone[3], copy.deepcopy(rows.alone[3]), rows.alone[1]]
        rows.feed(2)
        rows.check()

    def test_one_alone(self, options):
        """A row's first positions, which may be continued without touching the others."""
        rows = Rows(3, options)
        rows.feed(13)
        rows.trim([0, 1, 4])
        alone, cache = copy.deepcopy(rows.alone[1]), rows.cache.row(1, 7)
        alone.trim(5)
        q, k, v = (mx.array(rows.rng.normal(size=(1, 4, 3, 32)), mx.float32) for _ in range(3))
        found, expected = (rows.attend(c, q, k[:, :2], v[:, :2]) for c in (cache, alone))
        assert mx.abs(found - expected).max().item() < 1e-5
        assert cache.row_lengths == [10]
        rows.check()


def test_mask_of_rows_of_different_lengths():
    cache = KVCache()
    cache.update_and_fetch(*[mx.zeros((2, 1, 3, 4))] * 2)
    cache.trim_rows([2, 0])
    assert cache.make_mask(2)[:, 0].astype(mx.int32).tolist() == [
        [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]],
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ]
    assert cache.make_mask(1)[:, 0].astype(mx.int32).tolist() == [[[1, 1, 0, 0]], [[1, 1, 1, 1]]]


def test_as_many_of_each_row():
    """`trim` takes no more than the shortest row has."""
    cache = KVCache()
    cache.update_and_fetch(*[mx.zeros((2, 1, 5, 4))] * 2)
    cache.trim_rows([3, 0])
    assert cache.trim(1) == 1
    assert cache.row_lengths == [1, 4]
    assert cache.trim(3) == 1
    assert cache.row_lengths == [0, 3]
