"""How the encoder's frames are pooled for its BPE head: tokens are rarer than letters."""

import mlx.core as mx

POOLED_FRAMES = 4
_EPSILON = 1e-8  # of the head's training: a group of blanks alone becomes nearly nothing


def pool_frames(frames: mx.array, non_blank: mx.array) -> mx.array:
    """Weighted means of every four frames, the last of as many as there are.

    Args:
        frames: (batch, frames, width).
        non_blank: (batch, frames) their weights: how likely each is a part of a letter.

    Returns:
        (batch, frames / 4, width), in the type of `frames`.
    """
    batch, number, width = frames.shape
    padding = -number % POOLED_FRAMES
    groups = mx.pad(frames, [(0, 0), (0, padding), (0, 0)]).reshape(batch, -1, POOLED_FRAMES, width)
    weights = mx.pad(non_blank, [(0, 0), (0, padding)]).reshape(batch, -1, POOLED_FRAMES, 1)
    shares = weights / (weights.sum(axis=2, keepdims=True) + _EPSILON)
    return (groups * shares).sum(axis=2).astype(frames.dtype)
