"""Cross-entropy, as models compute it where labels are given."""

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError

IGNORED = -100  #: label of a position that does not count


def cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """Mean over the labels that are not -100, in float32.

    Args:
        logits: (rows, length, vocab_size).
        labels: (rows, length), for the same positions.

    Raises:
        InputError: a label is no id of the vocabulary.
    """
    counts = labels != IGNORED
    targets, size = mx.where(counts, labels, 0), logits.shape[-1]
    lowest, highest = mx.min(targets).item(), mx.max(targets).item()
    if lowest < 0 or highest >= size:
        raise InputError(
            f"labels hold {lowest if lowest < 0 else highest}, but must be within 0 and "
            f"{size - 1}, or {IGNORED} where there is no loss"
        )
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), targets)
    return (losses * counts).sum() / counts.sum()


def causal_lm_loss(
    logits: mx.array, labels: mx.array, attention_mask: mx.array | None = None
) -> mx.array:
    """Mean cross-entropy of each position's logits against the next position's label.

    Args:
        logits: (batch, length, vocab_size).
        labels: (batch, length), -100 where there is no loss.
        attention_mask: (batch, length); labels at its zeros do not count either.

    Raises:
        InputError: a label is no id of the vocabulary.
    """
    targets = labels[:, 1:]
    if attention_mask is not None:
        targets = mx.where(attention_mask[:, 1:] != 0, targets, IGNORED)
    return cross_entropy(logits[:, :-1], targets)
