"""How the encoder's frames are pooled for its BPE head: tokens are rarer than letters."""

import mlx.core as mx

POOLED_FRAMES = 4
_EPSILON = 1e-8  # of the head's training: a group of blanks alone becomes nearly nothing


def pool_frames(
    frames: mx.array,
    non_blank: mx.array,
    size: int = POOLED_FRAMES,
    least_total: float | None = None,
) -> mx.array:
    """Weighted means of every so many frames, the last of as many as there are.

    Args:
        frames: (batch, frames, width).
        non_blank: (batch, frames) their weights: how likely each is a part of a letter.
        size: frames of a group.
        least_total: what the weights of a group sum up to at least, where they divide; by default
            a little is added to their sum.

    Returns:
        (batch, frames / size, width), in the type of `frames`.
    """
    batch, number, width = frames.shape
    padding = -number % size
    groups = mx.pad(frames, [(0, 0), (0, padding), (0, 0)]).reshape(batch, -1, size, width)
    weights = mx.pad(non_blank, [(0, 0), (0, padding)]).reshape(batch, -1, size, 1)
    total = weights.sum(axis=2, keepdims=True)
    divisor = total + _EPSILON if least_total is None else mx.maximum(total, least_total)
    return (groups * (weights / divisor)).sum(axis=2).astype(frames.dtype)
