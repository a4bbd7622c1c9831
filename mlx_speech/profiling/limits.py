"""What the machine can do at best, measured: how many bytes it moves and how much it calculates."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

#: more than caches hold
_COPIED_BYTES = 2**28
_COPIES = 4
#: products of square matrices grow until one takes this long: what comes around it is then small
_LONG_ENOUGH_S = 0.03
_SMALLEST_SIDE = 256


def median_seconds(work: Callable[[], Any], runs: int) -> float:
    """What it takes to call `work` and evaluate what it returns, after a call that warms up."""
    times = []
    for _ in range(runs + 1):
        start_s = time.perf_counter()
        mx.eval(work())
        times.append(time.perf_counter() - start_s)
    return statistics.median(times[1:])


def copy_bandwidth(runs: int) -> float:
    """Bytes a second that are read and written by the simplest of operations, on large arrays."""
    array = mx.zeros(_COPIED_BYTES // 4, mx.float32)
    mx.eval(array)

    def copies() -> mx.array:
        copied = array
        for _ in range(_COPIES):
            copied = -copied
        return copied

    moved = 2 * _COPIES * array.nbytes
    seconds = median_seconds(copies, runs)
    mx.clear_cache()
    return moved / seconds


def matmul_flops(dtype: mx.Dtype, runs: int) -> float:
    """Floating-point operations a second in a product of two large square matrices."""
    side = _SMALLEST_SIDE
    while True:
        matrix = mx.ones((side, side), dtype)
        seconds = median_seconds(partial(mx.matmul, matrix, matrix), runs)
        if seconds >= _LONG_ENOUGH_S:
            mx.clear_cache()
            return 2 * side**3 / seconds
        side *= 2
