"""The Conformer encoder over audio that is still coming in; see `conformer_window`."""

from collections.abc import Sequence

import mlx.core as mx

from ...layers.lora import use_adapter
from ..conformer_window import Halos, run_block
from .encoder import GraniteSpeechCTCEncoder, GraniteSpeechEncoderOutput


def encode_window(
    encoder: GraniteSpeechCTCEncoder,
    features: mx.array,
    halos: Halos = (),
    places: Sequence[int] = (),
) -> tuple[GraniteSpeechEncoderOutput, list[Halos]]:
    """Encode a part of a recording as if nothing came after it, with a LoRA adapter on, as always
    where there is audio.

    Args:
        features: (frames, input_dim), from a multiple of the encoder's `context_size` on.
        halos: those of that place; none: nothing is before it.
        places: frames of the part, multiples of `context_size`.

    Returns:
        (1, frames, ...), and the halos of each place. All is evaluated but the logits, which cost
        nothing unless they are.
    """
    with use_adapter(True):
        x, non_blank = encoder.embed(features[None]), mx.ones((1, len(features)))
        exported, kept = [], []
        for number, block in enumerate(encoder.layers):
            if number in (encoder.config.cat_hidden_layers or ()):
                exported.append(x)
            halo = halos[number] if halos else None
            x, own = run_block(block, x, encoder.config.context_size, halo, places)
            kept.append(own)
            if number + 1 == encoder.middle:
                x, non_blank = encoder.condition(x)
        hidden = mx.concatenate([*exported, x], axis=-1)
        mx.eval(hidden, non_blank, kept)
        output = GraniteSpeechEncoderOutput(
            last_hidden_state=hidden, non_blank=non_blank, ctc_logits=encoder.out(x)
        )
        return output, [list(place) for place in zip(*kept, strict=True)]
