"""GPTQ (https://arxiv.org/abs/2210.17323) over a decoder, by mlx-lm, one layer after the other.

Weights are rounded column by column, and what a column loses is made up for in those behind it, as
far as inputs of that kind can tell. In memory are a layer, the Hessians of its inputs, of 4 bytes
times the square of their number for each linear layer in it, and the hidden states of all
utterances. What a layer gets is what the quantized ones before it give.
"""

from itertools import groupby
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.errors import InputError

from .blocks import Decoder
from .calibration import Progress, shown_modules
from .reporting import reported

BITS = (2, 4, 8)  #: that mlx-lm packs


def check(settings: dict[str, Any]) -> None:
    """Refuse bits that mlx-lm cannot pack.

    Args:
        settings: of the decoder's linear layers, see `linear_settings`.

    Raises:
        InputError: there are some.
    """
    if not can(settings):
        bits = {s["bits"] for s in settings.values() if s} - {*BITS}
        text = "{method} gptq has 2, 4 and 8 bits, not {found}; give other {q_bits}"
        raise InputError.about(text, found=min(bits))


def can(settings: dict[str, Any]) -> bool:
    """Whether all are bits that mlx-lm can pack."""
    return {s["bits"] for s in settings.values() if s} <= {*BITS}


def quantize(decoder: Decoder, progress: Progress) -> None:
    """Quantize a decoder in place."""
    from mlx_lm.quant import gptq

    decoder.quantize_ends()
    states = decoder.inputs()
    for number, settings in enumerate(decoder.block_settings()):
        stage = _Stage(decoder.blocks[number])
        doing = f"layer {number + 1} of {len(decoder.blocks)}"
        by_kind = sorted((s["bits"], s["group_size"], path) for path, s in settings.items())
        for (bits, group_size), same in groupby(by_kind, key=lambda entry: entry[:2]):
            stage.show([path for *_, path in same])
            with reported(gptq, progress, doing):
                how = (bits, group_size, bits, group_size)
                gptq.gptq_quantize(stage, states, *how, batch_size=1)
        states = [stage([state]) for state in states]
        mx.eval(states)
        mx.clear_cache()


class _Stage(nn.Module):
    """A layer as a model of batches, each a list of one utterance's hidden states."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block
        self._shown: frozenset[str] | None = None

    def __call__(self, batch: list[mx.array]) -> mx.array:
        (states,) = batch
        return self.block(states, mask="causal")

    def show(self, paths: list[str]) -> None:
        """Have only these modules of the layer found in it."""
        self._shown = frozenset(f"block.{path}" for path in paths)

    def leaf_modules(self) -> dict[str, Any]:
        """See `nn.Module`."""
        return shown_modules(super().leaf_modules(), self._shown)
