"""What models compute where labels are given, as transformers' loss functions do."""

from typing import Annotated, Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from ..fields import Range, fitted
from ..layers.token_ids import as_mlx, check_array, check_token_ids

_Positive = Annotated[float, Range(0, exclusive=True)]
IGNORED = -100  #: label of a position that does not count
_NEVER = -1e30  #: logarithm of a probability of nothing, of which there is a gradient


def cross_entropy(
    logits: mx.array,
    labels: mx.array,
    num_items_in_batch: int | mx.array | None = None,
    ignore_index: int = IGNORED,
) -> mx.array:
    """Mean over the labels that count, in float32; NaN where none does.

    Args:
        logits: (…, classes).
        labels: (…), for the same positions.
        num_items_in_batch: what the sum is divided by instead, where a batch is one part of
            several.
        ignore_index: label that does not count.

    Raises:
        InputError: a label is none of the classes, or there are more or fewer than logits.
    """
    size = logits.shape[-1]
    # of a type that holds what does not count
    labels = check_array(labels, "labels", mx.integer, logits.shape[:-1]).astype(mx.int64)
    counts = labels != ignore_index
    targets = mx.where(counts, labels, 0)
    lowest, highest = mx.min(targets).item(), mx.max(targets).item()
    if lowest < 0 or highest >= size:
        raise InputError(
            f"labels hold {lowest if lowest < 0 else highest}, but must be within 0 and "
            f"{size - 1}, or {ignore_index} where there is no loss"
        )
    total = None
    if num_items_in_batch is not None:
        total = fitted("num_items_in_batch", num_items_in_batch, _Positive)
    return unchecked_cross_entropy(logits, labels, total, ignore_index)


def unchecked_cross_entropy(
    logits: mx.array, labels: mx.array, total: Any = None, ignore_index: int = IGNORED
) -> mx.array:
    """The same where nothing is waited for, so that it can be compiled; arguments as there."""
    counts = labels != ignore_index
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), mx.where(counts, labels, 0))
    return (losses * counts).sum() / (counts.sum() if total is None else total)


def causal_lm_loss(
    logits: mx.array,
    labels: mx.array,
    attention_mask: mx.array | None = None,
    num_items_in_batch: int | mx.array | None = None,
    ignore_index: int = IGNORED,
) -> mx.array:
    """Cross-entropy of each position's logits against the next position's label.

    Args:
        logits: (batch, length, vocab_size).
        labels: (batch, length).
        attention_mask: (batch, length); labels at its zeros do not count either.
        num_items_in_batch, ignore_index: see `cross_entropy`.

    Raises:
        InputError: a label is no id of the vocabulary, or there are more or fewer than logits.
    """
    hint = ", one for each position's logits"
    labels = check_array(labels, "labels", mx.integer, logits.shape[:-1], hint=hint)
    labels = labels.astype(mx.int64)
    if attention_mask is not None:
        labels = mx.where(as_mlx(attention_mask) != 0, labels, ignore_index)
    # the last position has no next one
    end = mx.full((len(labels), 1), ignore_index, mx.int64)
    labels = mx.concatenate([labels[:, 1:], end], axis=1)
    return cross_entropy(logits, labels, num_items_in_batch, ignore_index)


def ctc_loss(
    logits: mx.array,
    labels: mx.array,
    lengths: mx.array,
    *,
    blank: int,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> mx.array:
    """How unlikely it is that labels of frames, blanks and repetitions apart, are those of the
    recordings, in float32 (Graves and others, "Connectionist Temporal Classification", 2006).

    Args:
        logits: (batch, frames, classes).
        labels: (batch, length); -100 and blanks, wherever they stand, do not count.
        lengths: (batch,) frames of each recording.
        reduction: `"mean"` over the recordings, each divided by the number of its labels, their
            `"sum"`, or `"none"`: (batch,).
        zero_infinity: whether a recording that is too short for its labels counts 0.

    Raises:
        InputError: a label is none of the classes, or there are not as many rows as of logits.
    """
    labels = check_array(labels, "labels", mx.integer, (len(logits), "length"))
    labels = check_token_ids(labels, logits.shape[-1], "labels", IGNORED)
    losses, number = ctc_losses(logits, labels, lengths, blank, zero_infinity)
    if reduction == "none":
        return losses
    return (losses / mx.maximum(number, 1)).mean() if reduction == "mean" else losses.sum()


def ctc_losses(
    logits: mx.array, labels: mx.array, lengths: mx.array, blank: int, zero_infinity: bool
) -> tuple[mx.array, mx.array]:
    """The same where nothing is waited for, so that it can be compiled; arguments as there.

    Returns:
        The loss of each recording and the number of its labels that count, (batch,) each.
    """
    counts = (labels != IGNORED) & (labels != blank)
    labels = mx.where(counts, labels, blank)
    places = mx.arange(labels.shape[1])
    # those that count come first, in their order
    order = mx.argsort(mx.where(counts, places, places + labels.shape[1]), axis=1)
    labels, number = mx.take_along_axis(labels, order, axis=1), counts.sum(axis=1)
    # states are blanks before, between and after the labels
    states = mx.stack([mx.full(labels.shape, blank), labels], axis=2).flatten(1)
    states = mx.pad(states, [(0, 0), (0, 1)], constant_values=blank)
    differs = mx.pad(states[:, 2:] != states[:, :-2], [(0, 0), (2, 0)])
    skips = mx.where(differs & (states != blank), 0.0, _NEVER)
    logprobs = logits.astype(mx.float32)
    logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
    logprobs = mx.take_along_axis(logprobs, states[:, None], axis=2)

    # not compared in the loop, where each number would be a kernel of its own to be compiled
    real = (mx.arange(logits.shape[1])[:, None] < lengths)[..., None]
    reached = mx.where(mx.arange(states.shape[1]) == 0, 0.0, mx.full(states.shape, _NEVER))
    for frame in range(logits.shape[1]):
        one, two = (
            mx.pad(reached[:, :-by], [(0, 0), (by, 0)], constant_values=_NEVER) for by in (1, 2)
        )
        ways = mx.stack([reached, one, two + skips])
        following = mx.logsumexp(ways, axis=0) + logprobs[:, frame]
        reached = mx.where(real[frame], following, reached)
    ends = mx.stack([2 * number, mx.maximum(2 * number - 1, 0)], axis=1)
    ends = mx.where(mx.arange(2) < 1 + (number > 0)[:, None], ends, states.shape[1])
    reached = mx.pad(reached, [(0, 0), (0, 1)], constant_values=_NEVER)
    losses = -mx.logsumexp(mx.take_along_axis(reached, ends, axis=1), axis=1)
    return mx.where(losses < -_NEVER / 2, losses, 0.0 if zero_infinity else mx.inf), number


def sequence_classification_loss(
    logits: mx.array, labels: Any, problem_type: str | None = None
) -> mx.array:
    """Mean squared error, cross-entropy or binary cross-entropy, in float32.

    Args:
        logits: (batch, num_labels).
        labels: integers (batch,) for one class of several, -100 where there is no loss; else floats
            (batch, num_labels), of one output alone also (batch,).
        problem_type: by default it follows from the labels.

    Raises:
        InputError: labels have another shape or type, or are no classes.
    """
    labels, (batch, num_labels) = as_mlx(labels), logits.shape
    if problem_type is None and num_labels == 1:
        problem_type = "regression"
    elif problem_type is None and mx.issubdtype(getattr(labels, "dtype", mx.float32), mx.integer):
        problem_type = "single_label_classification"
    single = problem_type == "single_label_classification"
    one_each = single or num_labels == 1
    shapes = [(batch,), (batch, 1)] if one_each else [(batch, num_labels)]
    labels = check_array(labels, "labels", mx.generic, *shapes)
    if single:
        return cross_entropy(logits, labels.flatten())
    logits, targets = (part.astype(mx.float32) for part in (logits, labels.reshape(logits.shape)))
    if problem_type == "regression":
        return nn.losses.mse_loss(logits, targets)
    return nn.losses.binary_cross_entropy(logits, targets)
