"""The encoder over a recording that comes part by part; see `conformer_stream`."""

import mlx.core as mx

from ..conformer_stream import BlockStream, evaluate
from .encoder import GraniteSpeech5Encoder


class GraniteSpeech5EncoderStream:
    """Encodes one recording part by part into the frames that one call would give.

    Between two parts it holds, with C frames in an attention block and a convolution of k frames,
    less than `num_hidden_layers * (C * hidden_size + k * (hidden_size + inner))` numbers, where
    inner is `hidden_size * conv_expansion_factor`, whatever the length: under 6 MB for the released
    models in 16 bits.
    """

    def __init__(self, encoder: GraniteSpeech5Encoder):
        self._encoder = encoder
        dtype = encoder.layers[0].norm_out.weight.dtype
        sizes = encoder.config.context_size, dtype
        self._blocks = [BlockStream(block, *sizes) for block in encoder.layers]
        self._ended = False

    def push(self, features: mx.array, last: bool = False) -> mx.array:
        """Take the next frames and give those that are final.

        Args:
            features: (frames, 4 * num_mel_bins), any number of them, also none.
            last: they end the recording; everything that still waits is given, too.

        Returns:
            The next hidden states in order: (1, n, hidden_size), evaluated, where n may be 0.

        Raises:
            ValueError: the recording has ended already.
        """
        if self._ended:
            raise ValueError("the recording has ended: use a new stream for another")
        self._ended = last
        x = self._encoder.embed(features[None])
        for number, block in enumerate(self._blocks, start=1):
            x = block.push(x, last)
            if number == self._encoder.middle and x.shape[1]:
                x = self._encoder.condition(x)
        if x.shape[1]:
            mx.eval(x)
        evaluate(*(queue for block in self._blocks for queue in block.queues))
        return x
