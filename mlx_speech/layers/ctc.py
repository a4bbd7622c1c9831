"""What a head trained with CTC says greedily."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import itemgetter

import mlx.core as mx


def likeliest(logits: mx.array) -> tuple[mx.array, mx.array]:
    """The likeliest label of each frame, and its log-probability: (frames, labels) -> (frames,)
    uint32 and (frames,) float32."""
    if not len(logits):  # which MLX refuses to reduce
        return mx.zeros(0, mx.uint32), mx.zeros(0)
    logits = logits.astype(mx.float32)
    return mx.argmax(logits, axis=-1), logits.max(axis=-1) - mx.logsumexp(logits, axis=-1)


def best_labels(
    logits: mx.array, entropies: list[float] | None = None
) -> tuple[list[int], list[float]]:
    """As `likeliest`, in lists.

    Args:
        logits: (frames, labels).
        entropies: where given, those of the frames are appended to it, in nats.
    """
    labels, logprobs = likeliest(logits)
    mx.eval(labels, logprobs)
    if entropies is not None and len(logits):
        logits = logits.astype(mx.float32)
        total = mx.logsumexp(logits, axis=-1)
        entropies += (total - (mx.softmax(logits, axis=-1) * logits).sum(axis=-1)).tolist()
    return labels.tolist(), logprobs.tolist()


def best_labels_in_parts(
    logits: Callable[[slice], mx.array],
    frames: int,
    at_once: int,
    entropies: list[float] | None = None,
) -> tuple[list[int], list[float]]:
    """As `best_labels`, where the logits of all frames are too many for memory.

    Args:
        logits: gives those of some of the frames, (frames or fewer, labels).
        frames: how many there are.
        at_once: for how many of them logits are in memory together.
    """
    labels: list[int] = []
    logprobs: list[float] = []
    for start in range(0, frames, at_once):
        best, best_logprobs = best_labels(logits(slice(start, start + at_once)), entropies)
        labels += best
        logprobs += best_logprobs
    return labels, logprobs


def collapsed(
    labels: Iterable[int], logprobs: Iterable[float], blank: int
) -> tuple[list[int], list[float]]:
    """What a CTC head says with a label for each frame, and its log-probability: one of several
    frames in a row counts once, with the highest of theirs, blanks do not."""
    groups = groupby(zip(labels, logprobs, strict=True), key=itemgetter(0))
    said = [(label, max(logprob for _, logprob in run)) for label, run in groups if label != blank]
    return [label for label, _ in said], [logprob for _, logprob in said]


def distinct(labels: Sequence[int], blank: int) -> list[int]:
    """As `collapsed`, the labels alone."""
    return [label for label, _ in groupby(labels) if label != blank]
