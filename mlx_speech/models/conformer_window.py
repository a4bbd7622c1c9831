"""Conformer blocks over the latest part of a recording that is still coming in, again and again.

A stream (`conformer_stream`) hands on what is final, seconds late. A window gives all frames up to
the latest at once, though what is to come will still change the last of them. It may begin at any
attention block of the recording: of what is before that, a Conformer block needs only the few
frames that its convolution reaches back to, its halo.
"""

from collections.abc import Sequence

import mlx.core as mx

from .conformer import ConformerBlock, FrameMask

#: of each Conformer block the frames before a window, as its convolution gets them, (1, k // 2,
#: inner) for one of k frames; none, where zeros are before it
Halos = Sequence[mx.array]


def run_block(
    block: ConformerBlock,
    x: mx.array,
    context_size: int,
    halo: mx.array | None,
    places: Sequence[int],
) -> tuple[mx.array, list[mx.array]]:
    """A Conformer block over a window.

    Args:
        x: (1, n, width), from the beginning of an attention block on.
        context_size: frames of an attention block.
        halo: the block's, before the window.
        places: beginnings of other attention blocks in it.

    Returns:
        (1, m, width), and the halos at these places.
    """
    attended, gated = block.attend(x, FrameMask(x.shape[1], context_size, None))
    before, after = block.depthwise.halo
    if halo is None:
        halo = mx.zeros((1, before, gated.shape[2]), gated.dtype)
    gated = mx.pad(mx.concatenate([halo, gated], axis=1), [(0, 0), (0, after), (0, 0)])
    # copies: slices would hold on to the whole
    halos = [mx.contiguous(gated[:, place : place + before]) for place in places]
    return block.convolve(attended, gated, halo=True), halos
