"""Recordings and their texts -> batches of arrays."""

from typing import NamedTuple

import mlx.core as mx


class Batch(NamedTuple):
    """Several recordings with what is to be written about them, padded on the right.

    input_ids: (rows, length) prompt, with an audio token for each of the recording's, text, end.
    labels: (rows, length) the same, and -100 where there is no loss: prompt, audio and padding.
    audio_positions: (rows, length) which of the recording's audio tokens stands there; -1 at text.
    audio: (rows, frames, size) what the encoder made of the recordings, zero behind their ends; or,
        where the encoder is run in each step, their features.
    lengths: (rows,) frames of each.
    letters: (rows, n) labels of the CTC head, -100 behind their ends; n is 0 where it is not
        trained.
    """

    input_ids: mx.array
    labels: mx.array
    audio_positions: mx.array
    audio: mx.array
    lengths: mx.array
    letters: mx.array
