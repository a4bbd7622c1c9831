"""Where to cut a recording that is too long for a model."""

from __future__ import annotations

import mlx.core as mx

#: loudness is compared over windows of this length, in seconds, shifted by a tenth of it
WINDOW_S = 0.3


def cut_at_quiet(
    samples: mx.array, sampling_rate: int, max_seconds: float
) -> list[tuple[int, int]]:
    """Spans of samples, one after the other, none longer than `max_seconds`.

    A cut is in the middle of the quietest window among those that leave both sides a fair length:
    at least a quarter of `max_seconds`.

    Args:
        samples: (n,).

    Returns:
        `(start, end)` of each span; together they are the whole recording.
    """
    longest = int(max_seconds * sampling_rate)
    shift = max(1, round(WINDOW_S / 10 * sampling_rate))
    spans, start = [], 0
    while samples.size - start > longest:
        low = start + longest // 2
        high = min(start + longest, samples.size - longest // 4)
        spans.append((start, low + _quietest(samples[low:high], shift)))
        start = spans[-1][1]
    return [*spans, (start, samples.size)]


def _quietest(samples: mx.array, shift: int) -> int:
    """Middle of the window of ten shifts with the least energy."""
    count = samples.size // shift
    energy = mx.square(samples[: count * shift]).reshape(count, shift).sum(axis=1)
    if count <= 10:
        return samples.size // 2
    total = mx.concatenate([mx.zeros(1), mx.cumsum(energy)])
    return (mx.argmin(total[10:] - total[:-10]).item() + 5) * shift
