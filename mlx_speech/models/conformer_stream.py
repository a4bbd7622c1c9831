"""Conformer blocks over a recording that comes part by part, in memory that does not grow.

A block needs nothing of a recording but whole attention blocks, and a few frames to either side for
its convolution. So each keeps only the frames that still wait for those, and hands on what is
final: block k runs about k attention blocks behind the input, and nothing is computed twice.
"""

from collections.abc import Sequence

import mlx.core as mx

from .conformer import ConformerBlock, FrameMask


class Frames:
    """Frames that wait, first in, first out: (1, n, width), or None where there are none, since not
    all of MLX's backends compute with arrays of no elements."""

    def __init__(self, waiting: mx.array | None = None):
        self.waiting = waiting

    def __len__(self) -> int:
        return 0 if self.waiting is None else self.waiting.shape[1]

    def __getitem__(self, part: slice) -> mx.array:
        """(n, width), some of those that wait."""
        assert self.waiting is not None
        return self.waiting[0, part]

    def append(self, x: mx.array) -> None:
        """Add (1, n, width), any n."""
        if x.shape[1]:
            self.waiting = x if self.waiting is None else mx.concatenate([self.waiting, x], axis=1)

    def take(self, number: int, keep: int = 0) -> mx.array:
        """The first frames, (1, number, width), all but the last `keep` of which go."""
        assert self.waiting is not None
        taken = self.waiting[:, :number]
        self.drop(number - keep)
        return taken

    def drop(self, number: int) -> None:
        """Let the first frames go."""
        if number >= len(self):
            self.waiting = None
        elif self.waiting is not None:
            # a copy: a slice would hold on to the whole
            self.waiting = mx.contiguous(self.waiting[:, number:])


def evaluate(*queues: Frames) -> None:
    """Compute what waits, or it would keep all that it is computed from."""
    mx.eval([frames.waiting for frames in queues if len(frames)])


def reach_frames(blocks: Sequence[ConformerBlock], context_size: int) -> int:
    """How many frames to either side a frame of the last of some blocks depends on, at most; in
    frames of the first one's input.

    Args:
        context_size: frames of an attention block.
    """
    reach, stride = 0, 1
    for block in blocks:
        reach += stride * (context_size + sum(block.depthwise.halo))
        stride *= block.depthwise.stride
    return reach


class BlockStream:
    """One Conformer block.

    Args:
        context_size: frames of an attention block.
        dtype: of the block's frames.
    """

    def __init__(self, block: ConformerBlock, context_size: int, dtype: mx.Dtype):
        self._block, self._context_size = block, context_size
        self._before, self._after = block.depthwise.halo
        self._stride = block.depthwise.stride
        self._inner = len(block.depthwise.weight)
        self._attention, self._residual, self._gated = Frames(), Frames(), Frames()
        self._gated.append(mx.zeros((1, self._before, self._inner), dtype))
        self.queues = (self._attention, self._residual, self._gated)

    def push(self, x: mx.array, last: bool) -> mx.array:
        """(1, n, width) -> (1, m, width), frames that are final."""
        self._attention.append(x)
        whole = len(self._attention)
        if not last:
            whole -= whole % self._context_size
        if whole:
            mask = FrameMask(whole, self._context_size, None)
            attended, gated = self._block.attend(self._attention.take(whole), mask)
            self._residual.append(attended)
            self._gated.append(gated)
        if last:
            self._gated.append(mx.zeros((1, self._after, self._inner), x.dtype))
        halo = self._before + self._after
        final = (len(self._gated) - halo) // self._stride * self._stride
        if final <= 0:
            return x[:, :0]
        gated = self._gated.take(final + halo, keep=halo)
        return self._block.convolve(self._residual.take(final), gated, halo=True)
