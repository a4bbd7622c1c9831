"""What the machine can do at best; how much that is, nobody knows."""

import itertools

import mlx.core as mx
import pytest

from mlx_speech.profiling import limits


@pytest.fixture
def clock(monkeypatch):
    """Each measurement takes what is next in this list, in seconds."""
    durations: list[float] = []
    now = itertools.accumulate(
        itertools.chain.from_iterable((0, durations.pop(0)) for _ in itertools.count())
    )
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(now))
    return durations


def test_a_median_without_the_first(clock):
    clock += [100, 3, 1, 2]
    calls = []
    assert limits.median_seconds(lambda: calls.append(1), 3) == 2
    assert len(calls) == 4


def test_what_is_returned_is_evaluated(monkeypatch):
    evaluated = []
    monkeypatch.setattr(limits.mx, "eval", evaluated.append)
    limits.median_seconds(lambda: "an array", 1)
    assert evaluated == ["an array"] * 2


def test_bytes_are_read_and_written(clock, monkeypatch):
    """256 MiB, four times, each read and written: 2 GiB in half a second."""
    monkeypatch.setattr(limits.mx, "eval", lambda *arrays: None)
    clock += [9, 0.5, 0.5]
    assert limits.copy_bandwidth(2) == 2**31 / 0.5


def test_products_grow(clock):
    """The first takes too little; a multiplication and an addition are two operations."""
    clock += [9, 0.001, 9, 0.25]
    assert limits.matmul_flops(mx.float32, 1) == 2 * 512**3 / 0.25
