"""The Conformer encoder over a recording that comes part by part; see `conformer_stream`."""

import mlx.core as mx

from ...layers.lora import use_adapter
from ..conformer_stream import BlockStream, Frames, evaluate
from .encoder import GraniteSpeechCTCEncoder, GraniteSpeechEncoderOutput


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
        sizes = encoder.config.context_size, encoder.layers[0].post_norm.weight.dtype
        self._blocks = [BlockStream(block, *sizes) for block in encoder.layers]
        # by number of the block: results that go out with the last block's, which come later
        kept = sorted(set(encoder.config.cat_hidden_layers or []))
        self._exported = {number: Frames() for number in kept}
        self._non_blank = Frames()
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
                    x, non_blank = self._encoder.condition(x) if x.shape[1] else (x, x[..., 0])
            self._non_blank.append(non_blank[..., None])
            kept = [*self._exported.values(), self._non_blank]
            if final := x.shape[1]:
                *exported, pooled = (frames.take(final) for frames in kept)
                hidden, non_blank = mx.concatenate([*exported, x], axis=-1), pooled[..., 0]
                mx.eval(hidden, non_blank)
            else:
                hidden = mx.zeros((1, 0, self._encoder.config.output_size), x.dtype)
                non_blank = mx.zeros((1, 0))
            evaluate(*kept, *(queue for block in self._blocks for queue in block.queues))
            return GraniteSpeechEncoderOutput(
                last_hidden_state=hidden, non_blank=non_blank, ctc_logits=self._encoder.out(x)
            )
