"""The Conformer encoder over a recording that comes part by part, in memory that does not grow.

A block needs nothing of a recording but whole attention blocks, and a few frames to either side for
its convolution. So each keeps only the frames that still wait for those, and hands on what is
final: block k runs about k attention blocks behind the input, and nothing is computed twice.
"""

import mlx.core as mx

from ...layers.lora import use_adapter
from .encoder import (
    ConformerBlock,
    FrameMask,
    GraniteSpeechCTCEncoder,
    GraniteSpeechEncoderOutput,
)


class EncoderStream:
    """Encodes one recording part by part into the frames that one call would give, with a LoRA
    adapter on, as always where there is audio.

    Between two parts it holds, with C frames in an attention block and a convolution of k frames,
    less than `num_layers * (C * hidden_dim + k * (hidden_dim + inner))` numbers, where inner is
    `hidden_dim * conv_expansion_factor`, whatever the length: under 10 MB for the released models
    in 16 bits. For each of `cat_hidden_layers`, the frames of the blocks behind it are added, and
    of `non_blank` a number for each frame behind the middle.
    """

    def __init__(self, encoder: GraniteSpeechCTCEncoder):
        self._encoder = encoder
        self._blocks = [_BlockStream(b, encoder.config.context_size) for b in encoder.layers]
        # by number of the block: results that go out with the last block's, which come later
        width, dtype = encoder.config.hidden_dim, encoder.layers[0].post_norm.weight.dtype
        kept = sorted(set(encoder.config.cat_hidden_layers or []))
        self._exported = {number: _Frames(0, width, dtype) for number in kept}
        self._non_blank = _Frames(0, 1, mx.float32)
        self._ended = False

    def push(self, features: mx.array, last: bool = False) -> GraniteSpeechEncoderOutput:
        """Take the next frames and give those that are final.

        Args:
            features: (frames, input_dim), any number of them, also none.
            last: they end the recording; everything that still waits is given, too.

        Returns:
            The next frames in order: (1, n, ...), where n may be 0. The hidden states are
            evaluated; the logits are not, and cost nothing unless they are.

        Raises:
            ValueError: the recording has ended already.
        """
        if self._ended:
            raise ValueError("the recording has ended: use a new EncoderStream for another")
        self._ended = last
        with use_adapter(True):
            x, non_blank = self._encoder.embed(features[None]), mx.ones((1, len(features)))
            for number, block in enumerate(self._blocks):
                if number in self._exported:
                    self._exported[number].append(x)
                x = block.push(x, last)
                if number + 1 == self._encoder.middle:
                    x, non_blank = self._encoder.condition(x)
            self._non_blank.append(non_blank[..., None])
            non_blank = self._non_blank.take(x.shape[1])[..., 0]
            exported = [frames.take(x.shape[1]) for frames in self._exported.values()]
            hidden = mx.concatenate([*exported, x], axis=-1)
            kept = [self._non_blank, *self._exported.values()]
            queues = [*kept, *(q for b in self._blocks for q in b.queues)]
            # now, or what waits would keep all that it is computed from
            mx.eval(hidden, non_blank, [frames.waiting for frames in queues])
            return GraniteSpeechEncoderOutput(
                last_hidden_state=hidden, non_blank=non_blank, ctc_logits=self._encoder.out(x)
            )


class _Frames:
    """Frames that wait, first in, first out.

    Args:
        number: how many frames of zeros it has at first.
    """

    def __init__(self, number: int, width: int, dtype: mx.Dtype):
        self.waiting = mx.zeros((1, number, width), dtype)

    def __len__(self) -> int:
        return self.waiting.shape[1]

    def append(self, x: mx.array) -> None:
        """Add (1, n, width), any n."""
        self.waiting = mx.concatenate([self.waiting, x], axis=1)

    def take(self, number: int, keep: int = 0) -> mx.array:
        """The first frames, all but the last `keep` of which go."""
        taken = self.waiting[:, :number]
        # a copy: a slice would hold on to the whole
        self.waiting = mx.contiguous(self.waiting[:, number - keep :])
        return taken


class _BlockStream:
    """One Conformer block."""

    def __init__(self, block: ConformerBlock, context_size: int):
        self._block, self._context_size = block, context_size
        self._before, self._after = block.conv.depth_conv.halo
        self._inner, norm = len(block.conv.depth_conv.weight), block.post_norm.weight
        self._attention, self._residual = (_Frames(0, len(norm), norm.dtype) for _ in range(2))
        self._gated = _Frames(self._before, self._inner, norm.dtype)
        self.queues = (self._attention, self._residual, self._gated)

    def push(self, x: mx.array, last: bool) -> mx.array:
        """(1, n, hidden_dim) -> (1, m, hidden_dim), frames that are final."""
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
        final = len(self._gated) - halo
        if final <= 0:
            return x[:, :0]
        gated = self._gated.take(len(self._gated), keep=halo)
        return self._block.convolve(self._residual.take(final), gated, halo=True)
