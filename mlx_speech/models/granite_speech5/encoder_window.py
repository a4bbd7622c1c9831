"""The encoder over audio that is still coming in; see `conformer_window`."""

from collections.abc import Sequence

import mlx.core as mx

from ..conformer_window import Halos, run_block
from .encoder import GraniteSpeech5Encoder


def encode_window(
    encoder: GraniteSpeech5Encoder,
    features: mx.array,
    halos: Halos = (),
    places: Sequence[int] = (),
) -> tuple[mx.array, list[Halos]]:
    """Encode a part of a recording as if nothing came after it.

    Args:
        features: (frames, 4 * num_mel_bins), from the beginning of an attention block of the last
            Conformer block on, and at least as many as give one frame.
        halos: those of that place; none: nothing is before it.
        places: frames of the part where other such attention blocks begin.

    Returns:
        Hidden states, (1, frames // 4, hidden_size), and the halos of each place, evaluated.
    """
    x, kept = encoder.embed(features[None]), []
    for number, block in enumerate(encoder.layers):
        halo = halos[number] if halos else None
        x, own = run_block(block, x, encoder.config.context_size, halo, places)
        kept.append(own)
        places = [place // block.depthwise.stride for place in places]
        if number + 1 == encoder.middle:
            x = encoder.condition(x)
    mx.eval(x, kept)
    return x, [list(place) for place in zip(*kept, strict=True)]
