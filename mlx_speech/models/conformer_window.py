"""Conformer blocks over the latest part of a recording that is still coming in, again and again.

A stream (`conformer_stream`) hands on what is final, seconds late. A window gives all frames up to
the latest at once, though what is to come will still change the last of them. Only attention blocks
that are not closed yet are computed again: of those before, each Conformer block keeps the few
frames that its convolution reaches back to.
"""

import mlx.core as mx

from .conformer import ConformerBlock, FrameMask


class BlockWindow:
    """One Conformer block.

    Args:
        context_size: frames of an attention block.
        dtype: of the block's frames.
    """

    def __init__(self, block: ConformerBlock, context_size: int, dtype: mx.Dtype):
        self._block, self._context_size = block, context_size
        before, after = block.depthwise.halo
        inner = len(block.depthwise.weight)
        self.stride = block.depthwise.stride
        self._after = mx.zeros((1, after, inner), dtype)
        #: the last frames before the window, as the convolution gets them
        self.before = mx.zeros((1, before, inner), dtype)

    def __call__(self, x: mx.array, closed: int) -> mx.array:
        """(1, n, width) of the frames from the first on that is not closed -> (1, m, width).

        Args:
            closed: how many of the first are now, and are not given again; whole attention blocks
                of all Conformer blocks.
        """
        mask = FrameMask(x.shape[1], self._context_size, None)
        attended, gated = self._block.attend(x, mask)
        gated = mx.concatenate([self.before, gated, self._after], axis=1)
        if closed:
            # a copy: a slice would hold on to the whole
            reach = self.before.shape[1]
            self.before = mx.contiguous(gated[:, closed : closed + reach])
        return self._block.convolve(attended, gated, halo=True)
