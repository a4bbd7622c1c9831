"""The key-value caches of attention layers.

Same interface as the caches of mlx-lm (`update_and_fetch`, `make_mask`, `offset`, `trim`), so that
its rotating and quantized ones can stand in for it, plus what the strategies here need: rows that
can be reordered (beam search) and a batch that is padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import mlx.core as mx

from .attention import causal_mask


class KVCache:
    """Keys and values of shape (batch, heads, length, head_dim) that grow in steps.

    Args:
        left_padding: for each batch row, how many positions at its start are padding. Positions
            are counted from the first real token, so that a row gives what it gives alone.
    """

    step = 256

    def __init__(self, left_padding: Sequence[int] | None = None):
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.length = 0
        self._left_padding = mx.array(left_padding) if left_padding and any(left_padding) else None

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token: one number, or one per row of a padded batch."""
        return self.length if self._left_padding is None else self.length - self._left_padding

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append the keys and values of new positions; returns those of all positions."""
        start, self.length = self.length, self.length + keys.shape[2]
        if self.keys is None or self.length > self.keys.shape[2]:
            self.keys = self._grow(self.keys, keys, start)
            self.values = self._grow(self.values, values, start)
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def _grow(self, old: mx.array | None, new: mx.array, used: int) -> mx.array:
        capacity = -(-(used + new.shape[2]) // self.step) * self.step
        batch, heads, _, head_dim = new.shape
        room = mx.zeros((batch, heads, capacity - used, head_dim), new.dtype)
        return room if old is None else mx.concatenate([old[:, :, :used], room], axis=2)

    def make_mask(self, num_queries: int) -> mx.array | str | None:
        """The mask for attention from `num_queries` new positions, before they are appended."""
        if self._left_padding is None:
            return "causal" if num_queries > 1 else None
        positions = mx.arange(self.length + num_queries)[None]
        return causal_mask(positions >= self._left_padding[:, None], num_queries)

    def trim(self, count: int) -> int:
        """Forget the last `count` positions; returns how many there were to forget."""
        count = min(count, self.length)
        self.length -= count
        return count

    def reorder(self, rows: mx.array) -> None:
        """Make row i what row `rows[i]` was; the number of rows may change."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        if self._left_padding is not None:
            self._left_padding = self._left_padding[rows]


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
        self.layers, self.mask = list(layers), mask

    @property
    def num_rows(self) -> int:
        """How many rows attend."""
        return self.layers[0][0].shape[0] * self.rows_per_recording

    def trim(self, count: int) -> int:
        """Nothing here belongs to a position of the decoder, so all `count` are forgotten."""
        return count

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
