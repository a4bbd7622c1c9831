"""The Conformer encoder over audio that is still coming in; see `conformer_window`."""

import mlx.core as mx

from ...layers.lora import use_adapter
from ..conformer_window import BlockWindow
from .encoder import GraniteSpeechCTCEncoder, GraniteSpeechEncoderOutput


class EncoderWindow:
    """Encodes the latest frames of a recording again and again, with a LoRA adapter on, as always
    where there is audio.

    What it gives is what the encoder gives for all frames up to the latest, as far as those that
    were closed saw enough of what came after them.
    """

    def __init__(self, encoder: GraniteSpeechCTCEncoder):
        self._encoder = encoder
        sizes = encoder.config.context_size, encoder.layers[0].post_norm.weight.dtype
        self._blocks = [BlockWindow(block, *sizes) for block in encoder.layers]

    def encode(self, features: mx.array, closed: int = 0) -> GraniteSpeechEncoderOutput:
        """Encode the frames from the first on that is not closed, as if no more were to come.

        Args:
            features: (frames, input_dim), one frame at least.
            closed: how many of the first are now, and are not given again; a multiple of the
                encoder's `context_size`.

        Returns:
            (1, frames, ...), evaluated save for the logits, which cost nothing unless they are.
        """
        with use_adapter(True):
            x, non_blank = self._encoder.embed(features[None]), mx.ones((1, len(features)))
            exported = []
            for number, block in enumerate(self._blocks):
                if number in (self._encoder.config.cat_hidden_layers or ()):
                    exported.append(x)
                x = block(x, closed)
                if number + 1 == self._encoder.middle:
                    x, non_blank = self._encoder.condition(x)
            hidden = mx.concatenate([*exported, x], axis=-1)
            mx.eval(hidden, non_blank, [block.before for block in self._blocks])
            return GraniteSpeechEncoderOutput(
                last_hidden_state=hidden, non_blank=non_blank, ctc_logits=self._encoder.out(x)
            )
