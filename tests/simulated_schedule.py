"""Machines that share tasks as `mlx_speech.distributed.schedule` has them do."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

from mlx_speech.distributed.schedule import longest_first


def simulate(
    seconds: Sequence[float],
    speeds: Sequence[float],
    order: Literal["longest first", "round robin"] = "longest first",
) -> float:
    """When machines that work side by side are done with all tasks, in seconds.

    Args:
        seconds: what each task takes on a machine of speed 1, in the order in which they were
            named.
        speeds: of the machines.
        order: `"longest first"`: as there; `"round robin"`: the first machine does the first task,
            the second one the second, and so on in turn, whoever is free.
    """
    if order == "round robin":
        number = len(speeds)
        return max(sum(seconds[i::number]) / speed for i, speed in enumerate(speeds))
    free = [(0.0, machine) for machine in range(len(speeds))]
    end = 0.0
    for task in longest_first(seconds):
        start, machine = heapq.heappop(free)
        done = start + seconds[task] / speeds[machine]
        end = max(end, done)
        heapq.heappush(free, (done, machine))
    return end
