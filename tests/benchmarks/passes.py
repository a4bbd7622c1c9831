"""What passes of a speech model's decoder take, beside the bare matrix products in them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import mlx.core as mx
from mlx.utils import tree_flatten


def median_seconds(compute: Callable[[], None], runs: int) -> float:
    """Of some runs, after one that is a warm-up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def seconds_of_pass(
    model, prompts: dict[str, mx.array], rows: int, fed: int, ragged: bool, runs: int
) -> float:
    """A pass over some tokens of some rows, after the prompts; these differ if `ragged`."""
    cache = model.make_cache()
    mx.eval(model.prefill(cache=cache, **{name: value[:rows] for name, value in prompts.items()}))
    lengths = [cache[0].length - row * ragged for row in range(rows)]
    tokens = mx.ones((rows, fed), mx.int32)

    def step() -> None:
        for layer in cache:
            pairs = zip(layer.row_lengths, lengths, strict=True)
            layer.trim_rows([have - want for have, want in pairs])
        mx.eval(model.step(tokens, cache))

    return median_seconds(step, runs)


def seconds_of_products(model, rows: int, runs: int) -> float:
    """What a pass multiplies with the decoder's matrices, and nothing else."""
    weights = [
        value
        for name, value in tree_flatten(model.language_model.parameters())
        if value.ndim == 2 and "embed_tokens" not in name
    ]
    inputs = {width: mx.ones((rows, width)) for width in {w.shape[1] for w in weights}}
    mx.eval(inputs)
    return median_seconds(lambda: mx.eval([inputs[w.shape[1]] @ w.T for w in weights]), runs)


def print_passes(model, prompts: dict[str, mx.array], runs: int) -> dict[tuple[int, int], float]:
    """What passes take; returns the seconds of their products by rows and tokens of each."""
    print(f"\n{'one pass':<32}{'seconds':>11}{'products':>11}{'to the first':>15}")
    many = len(prompts["input_ids"])
    products: dict[tuple[int, int], float] = {}
    for rows in (1, many):
        for fed in (1, 8, 16):
            products[rows, fed] = seconds_of_products(model, rows * fed, runs)
            times = products[rows, fed] / products[1, 1]
            for ragged in (False, True)[: 2 if rows > 1 else 1]:
                whole = seconds_of_pass(model, prompts, rows, fed, ragged, runs)
                what = f"{rows} x {fed}{', rows of different lengths' if ragged else ''}"
                print(f"  {what:<30}{whole:11.3f}{products[rows, fed]:11.3f}{times:14.2f}x")
    return products
