"""Caches that are reused: what they hold, and which one a prompt gets."""

import mlx.core as mx
import pytest
from conftest import random_decoder

from mlx_speech.generation.prefix_cache import PrefixCache, PrefixCachePool

A = list(range(10, 40))
B = [*A[:5], *range(40, 60)]  # begins like A
C = [3, 4, 5]


@pytest.fixture(scope="module")
def model():
    return random_decoder()


def filled(model, keys):
    cache = PrefixCache(model.make_cache())
    model.prefill(mx.array([keys]), cache.layers)
    assert cache.settle(keys)
    return cache


def next_logits(model, cache, keys):
    return model.prefill(mx.array([keys[cache.length :]]), cache.layers)[0, -1]


class TestPrefixCache:
    @pytest.mark.parametrize(
        ("keys", "length"), [(A, 29), ([*A, 1], 30), (B, 5), (A[:5], 4), (C, 0), ([10], 0)]
    )
    def test_common(self, model, keys, length):
        assert filled(model, A).common(keys) == length

    def test_goes_on_as_if_fed_anew(self, model):
        cache = filled(model, A)
        assert cache.trim_to(5)
        assert (cache.length, cache.keys) == (5, A[:5])
        expected = model.prefill(mx.array([B]), model.make_cache())[0, -1]
        assert mx.allclose(next_logits(model, cache, B), expected, atol=1e-5)

    def test_forks_are_apart(self, model):
        cache = filled(model, A)
        fork = cache.fork(5)
        expected = model.prefill(mx.array([B]), model.make_cache())[0, -1]
        assert mx.allclose(next_logits(model, fork, B), expected, atol=1e-5)
        longer = [*A, 7]
        expected = model.prefill(mx.array([longer]), model.make_cache())[0, -1]
        assert mx.allclose(next_logits(model, cache, longer), expected, atol=1e-5)

    def test_settles_on_what_was_really_fed(self, model):
        cache = filled(model, A)
        assert cache.settle([*A, 1, 2])  # the last tokens are never fed
        assert cache.keys == A
        assert cache.settle(A[:7])  # the cache was a step ahead
        assert (cache.length, cache.keys) == (7, A[:7])

    def test_what_cannot_be_trimmed(self, model):
        cache = PrefixCache(model.make_cache(max_kv_size=8))
        model.prefill(mx.array([A]), cache.layers)
        assert not cache.settle(A[:5])
        assert cache.length == len(A)


class TestPool:
    def test_the_longest_beginning_is_taken_and_put_back(self, model):
        pool = PrefixCachePool(4, 1 << 30)
        for keys in (A[:8], A, C):
            pool.put(filled(model, keys))
        taken = pool.take([*A, 1])
        assert (taken.keys, len(pool)) == (A, 2)
        pool.put(taken)
        assert len(pool) == 3
        assert pool.take([1, 2]) is None

    def test_a_beginning_in_common_costs_no_other_conversation_its_cache(self, model):
        pool = PrefixCachePool(4, 1 << 30)
        pool.put(filled(model, A))
        assert pool.take(B).keys == A[:5]
        assert len(pool) == 1
        assert pool.take([*A, 1]).keys == A
        assert len(pool) == 0

    def test_an_end_that_changed_is_forgotten(self, model):
        pool = PrefixCachePool(4, 1 << 30)
        pool.put(filled(model, A))
        assert pool.take([*A[:-2], 1]).keys == A[:-2]
        assert len(pool) == 0

    def test_is_bounded(self, model):
        size = filled(model, A).nbytes
        for pool in (PrefixCachePool(2, 1 << 30), PrefixCachePool(9, 2 * size)):
            for first in (1, 2, 3):
                pool.put(filled(model, [first, *A]))
            assert len(pool) == 2
            assert pool.take([1, *A, 9]) is None
            assert pool.take([3, *A, 9]) is not None
        assert size > 0
        pool = PrefixCachePool(9, size - 1)
        pool.put(filled(model, A))
        assert len(pool) == 0
