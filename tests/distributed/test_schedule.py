"""Longest first: what each rank gets, and when all are done."""

from __future__ import annotations

import itertools
import random

import pytest
from simulated_schedule import simulate

from mlx_speech.distributed.schedule import TaskQueue, longest_first, numbers_of_parts


def test_longest_first():
    assert longest_first([3, 9, 3, 0, 9.5]) == [4, 1, 0, 2, 3]
    assert longest_first([]) == []


@pytest.mark.parametrize(
    ("seconds", "ranks", "parts"),
    [
        ([36000], 4, [4]),
        ([36000], 1, [1]),
        ([], 3, []),
        ([0, 0], 3, [1, 1]),
        ([10] * 16, 4, [1] * 16),  # each a quarter of a rank's share
        ([10] * 15 + [150], 4, [1] * 15 + [4]),
        ([600, 100, 100, 100, 50, 50], 2, [2, 1, 1, 1, 1, 1]),
        ([200, 800], 4, [3, 4]),
        ([100, 900], 4, [2, 4]),
    ],
)
def test_numbers_of_parts(seconds, ranks, parts):
    assert numbers_of_parts(seconds, ranks) == parts


def test_parts_leave_nobody_idle_for_long():
    """With lengths of all kinds, all are done within two fifths more than the least possible."""
    for seed in range(200):
        draw = random.Random(seed)
        ranks = draw.randint(2, 8)
        seconds = [draw.lognormvariate(5, 2) for _ in range(draw.randint(1, 40))]
        numbers = numbers_of_parts(seconds, ranks)
        tasks = [s / n for s, n in zip(seconds, numbers, strict=True) for _ in range(n)]
        least = sum(seconds) / ranks
        assert least * (1 - 1e-9) <= simulate(tasks, [1] * ranks) <= 1.4 * least, seed


class TestQueue:
    def test_whoever_asks_first_gets_the_first(self):
        queue = TaskQueue(["a", "b", "c"])
        assert queue.assign() == []
        queue.ask(2)
        queue.ask(0)
        assert queue.assign() == [(2, "a"), (0, "b")]
        assert queue.assign() == []
        queue.ask(1)
        queue.ask(2)
        assert queue.assign() == [(1, "c")]
        queue.add(["d", "e"])
        assert queue.assign() == [(2, "d")]
        assert queue.tasks == ["e"]

    def test_what_need_not_be_done(self):
        queue = TaskQueue(["a", "b", "c", "b"])
        queue.remove(["b", "x"])
        queue.ask(1)
        queue.ask(0)
        queue.ask(3)
        assert queue.assign() == [(1, "a"), (0, "c")]


def least_makespan(seconds, speeds) -> float:
    """By trying everything."""
    return min(
        max(
            sum(s for s, own in zip(seconds, owners, strict=True) if own == machine) / speed
            for machine, speed in enumerate(speeds)
        )
        for owners in itertools.product(range(len(speeds)), repeat=len(seconds))
    )


class TestSimulation:
    def test_by_hand(self):
        assert simulate([3, 3, 2, 2, 2], [1, 1]) == 7  # 3 2 2 and 3 2; the best were 6
        assert simulate([9, 1, 9, 1], [1, 1], "round robin") == 18
        assert simulate([9, 1, 9, 1], [1, 1]) == 10
        assert simulate([8, 4], [2, 1], "round robin") == 4
        assert simulate([8, 4], [2, 1]) == 4
        assert simulate([], [1, 1]) == simulate([], [1], "round robin") == 0
        assert simulate([5], [1, 1, 1]) == 5

    def test_close_to_the_best(self):
        """Never more than 4/3 of the least, on machines of one speed (Graham)."""
        for seed in range(30):
            draw = random.Random(seed)
            seconds = [draw.random() for _ in range(draw.randint(1, 7))]
            number = draw.randint(1, 3)
            best = least_makespan(seconds, [1] * number)
            bound = (4 - 1 / number) / 3
            assert best - 1e-9 <= simulate(seconds, [1] * number) <= bound * best + 1e-9

    def test_machines_of_other_speeds(self):
        """One that is twice as fast does twice as much."""
        assert simulate([1.0] * 300, [2, 1]) == pytest.approx(100)
        assert simulate([1.0] * 300, [2, 1], "round robin") == 150
