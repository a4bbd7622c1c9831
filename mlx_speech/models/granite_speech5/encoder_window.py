"""The encoder over audio that is still coming in; see `conformer_window`."""

import mlx.core as mx

from ..conformer_window import BlockWindow
from .encoder import GraniteSpeech5Encoder


class GraniteSpeech5EncoderWindow:
    """Encodes the latest frames of a recording again and again.

    What it gives is what the encoder gives for all frames up to the latest, as far as those that
    were closed saw enough of what came after them.
    """

    def __init__(self, encoder: GraniteSpeech5Encoder):
        self._encoder = encoder
        sizes = encoder.config.context_size, encoder.layers[0].norm_out.weight.dtype
        self._blocks = [BlockWindow(block, *sizes) for block in encoder.layers]

    def encode(self, features: mx.array, closed: int = 0) -> mx.array:
        """Encode the frames from the first on that is not closed, as if no more were to come.

        Args:
            features: (frames, 4 * num_mel_bins), as many as give one frame at least.
            closed: how many of the first are now, and are not given again; a multiple of the
                frames that make an attention block of the last Conformer block.

        Returns:
            Hidden states, (1, frames // 4, hidden_size), evaluated.
        """
        x = self._encoder.embed(features[None])
        for number, block in enumerate(self._blocks, start=1):
            x = block(x, closed)
            closed //= block.stride
            if number == self._encoder.middle:
                x = self._encoder.condition(x)
        mx.eval(x, [block.before for block in self._blocks])
        return x
