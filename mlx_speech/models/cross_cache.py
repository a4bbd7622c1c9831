"""The cache of what a decoder listens to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import mlx.core as mx


class CrossAttentionCache:
    """Keys and values of what a decoder listens to, of all its layers; they never grow.

    All rows of one recording, such as the beams of a search, stand side by side and share one
    entry, so that following the beams copies nothing here.
    """

    def __init__(self):
        self.layers: list[tuple[mx.array, mx.array]] = []
        self.mask: mx.array | None = None
        self.rows_per_recording = 1

    def fill(
        self, layers: Sequence[tuple[mx.array, mx.array]], mask: mx.array | None = None
    ) -> None:
        """Set the contents, once.

        Args:
            layers: each layer's keys and values, (recordings, heads, frames, head_dim).
            mask: boolean (recordings, 1, 1, frames), true where there is a recording.
        """
        # whatever they are views of would be copied at every step
        self.layers = [(mx.contiguous(keys), mx.contiguous(values)) for keys, values in layers]
        self.mask = mask

    @property
    def num_rows(self) -> int:
        """How many rows attend."""
        return self.layers[0][0].shape[0] * self.rows_per_recording

    def trim(self, count: int) -> int:
        """Nothing here belongs to a position of the decoder, so all `count` are forgotten."""
        return count

    def latest(self, count: int) -> None:
        """No position of the decoder is here, see `KVCache.latest`."""

    def reorder(self, rows: mx.array) -> None:
        """As `KVCache.reorder`; copies only where a row changes to another recording."""
        recordings = (rows // self.rows_per_recording).tolist()
        runs = [(recording, len(list(run))) for recording, run in groupby(recordings)]
        if len({length for _, length in runs}) == 1:
            recordings, self.rows_per_recording = [recording for recording, _ in runs], runs[0][1]
        else:
            self.rows_per_recording = 1
        if recordings == list(range(self.layers[0][0].shape[0])):
            return
        source = mx.array(recordings)
        self.layers = [(keys[source], values[source]) for keys, values in self.layers]
        if self.mask is not None:
            self.mask = self.mask[source]
