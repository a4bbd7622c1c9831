"""How the encoder's frames are pooled for its BPE head: tokens are rarer than letters."""

from typing import Protocol

import mlx.core as mx

from ...layers.ctc import best_labels_in_parts

POOLED_FRAMES = 4
_GROUPS = 256  #: of frames whose logits over all tokens are in memory at once
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


class HasBPEHead(Protocol):
    """A model whose encoder has a CTC head of tokens.

    bpe_frames: frames that the head takes together.
    bpe_blank: its label that stands for nothing.
    bpe_shift: what other labels are above the tokens that they stand for.
    """

    bpe_frames: int
    bpe_blank: int
    bpe_shift: int

    def bpe_logits(self, hidden_states: mx.array, non_blank: mx.array) -> mx.array:
        """(batch, frames, output size) and (batch, frames) of the encoder -> (batch, groups of
        frames, labels), a last group of fewer frames included."""
        ...


def bpe_labels(
    model: HasBPEHead,
    hidden_states: mx.array,
    non_blank: mx.array,
    entropies: list[float] | None = None,
) -> tuple[list[int], list[float]]:
    """The likeliest label of each group of frames of one recording, and its log-probability.

    Args:
        hidden_states: (frames, output size) of the encoder.
        non_blank: (frames,), likewise.
        entropies: see `best_labels`.
    """

    def logits(part: slice) -> mx.array:
        return model.bpe_logits(hidden_states[None, part], non_blank[None, part])[0]

    return best_labels_in_parts(logits, len(hidden_states), _GROUPS * model.bpe_frames, entropies)
