"""Which module gets how many bits, and what config.json says about it.

A recipe is a row of `RECIPES`: bits for each part of a model. `Quantization` makes of it what MLX's
`nn.quantize` asks module by module, and the entries of config.json that MLX and mlx-lm read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, InputError

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


@dataclass(frozen=True)
class Recipe:
    """Bits for the parts of a model.

    sensitive: for those modules of the decoder that suffer most, see `_sensitive`.
    """

    encoder: int
    projector: int
    decoder: int
    sensitive: int


#: 4 bits in a Conformer cost far more words than they save bytes, hence its 8 nearly everywhere.
#: Rows from mixed_2_6 on are those of mlx-lm, with an encoder and a projector.
RECIPES = {
    #                     encoder  projector  decoder  sensitive
    "speech_4bit": Recipe(8, 8, 4, 4),
    "speech_8bit": Recipe(8, 8, 8, 8),
    "all_4bit": Recipe(4, 4, 4, 4),
    "mixed_4_8": Recipe(8, 8, 4, 8),
    "mixed_2_6": Recipe(8, 8, 2, 6),
    "mixed_3_4": Recipe(8, 8, 3, 4),
    "mixed_3_6": Recipe(8, 8, 3, 6),
    "mixed_4_6": Recipe(8, 8, 4, 6),
}
