"""Where in a recording somebody speaks, encoder frame by encoder frame (20 ms each)."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Activity:
    """Whether there is speech in each of n frames.

    speech: (n,), boolean.
    level: (n,), float32, the higher the more there is speech; tells the least bad of several bad
        places to cut.
    """

    speech: np.ndarray
    level: np.ndarray


def ctc_activity(ctc_logits: mx.array, blank: int = 0, space: int | None = None) -> Activity:
    """What a CTC head hears: speech is where its likeliest label is not the blank.

    Args:
        ctc_logits: (frames, labels).
        blank: its label.
        space: the label between words, if there is one; a frame where it is likely is the least
            bad place to cut in running speech.

    Returns:
        its `level` is the probability of a label that is neither, less that of the space.
    """
    probabilities = mx.softmax(ctc_logits.astype(mx.float32), axis=-1)
    level = 1.0 - probabilities[:, blank]
    if space is not None:
        level = level - 2.0 * probabilities[:, space]
    return Activity(np.array(mx.argmax(ctc_logits, axis=-1) != blank), np.array(level))
