"""Bits for each layer, by how much it costs that there are few in it, under a limit to the size.

Sensitivities are mlx-lm's: by the gradient of the divergence of the text's distributions, over the
whole model with few bits everywhere, how much less that would be with many bits in a layer, for
each of its weights. In memory are the model, a copy with few bits, and gradients of all weights in
float32: about five times a model of 16 bits.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_speech.checkpoint.quantization import Quantization
from mlx_speech.errors import InputError

from .calibration import CalibratedModel, Calibration, Progress
from .reporting import reported

HIGH_BITS = 8  #: of layers that are sensitive


def choose(
    model: Any,
    calibration: Calibration,
    quantization: Quantization,
    target_bpw: float | None,
    dtype: mx.Dtype,
    progress: Progress,
) -> Quantization:
    """The bits of each layer of a speech model.

    Args:
        calibration: has utterances with `input_features`.
        quantization: says what is quantized; the decoder's bits are the few. Where there is no
            target, the size that it gives is.
        target_bpw: most bits a weight of the whole result.
        dtype: of what is not quantized.

    Raises:
        InputError: no choice has so few bits.
    """
    modules = dict(model.named_modules())
    chosen = {path: quantization(path, module) for path, module in modules.items()}
    settings = {path: s for path, s in chosen.items() if isinstance(s, dict)}
    low = quantization.default["bits"]

    def nbytes(path: str, bits: int) -> float:
        weights, group_size = modules[path].weight.size, settings[path]["group_size"]
        return weights * bits / 8 + weights / group_size * 2 * dtype.size

    sizes = {n: a.size for n, a in tree_flatten(model.parameters()) if ".lora_" not in n}
    others = sum(sizes.values()) - sum(modules[path].weight.size for path in settings)
    size = others * dtype.size + sum(nbytes(path, low) for path in settings)
    if target_bpw is None:
        room = sum(nbytes(path, s["bits"]) - nbytes(path, low) for path, s in settings.items())
    else:
        room = target_bpw * sum(sizes.values()) / 8 - size
    if room < 0:
        text = (
            "{target_bpw} is {wanted:g}, but {low} bits everywhere come to {least:.2f} a weight; "
            "give more, or fewer {q_bits}"
        )
        least = 8 * size / sum(sizes.values())
        raise InputError.about(text, wanted=target_bpw, low=low, least=least)
    bits = dict.fromkeys(settings, low)
    costs = _sensitivities(model, calibration, settings, low, progress)
    for path in sorted(costs, key=lambda path: -costs[path]):
        more = nbytes(path, HIGH_BITS) - nbytes(path, low)
        if more <= room:
            bits[path] = HIGH_BITS
            room -= more
    by_name = {path.removesuffix(".base"): number for path, number in bits.items()}

    def predicate(path: str, module: nn.Module) -> bool | dict[str, int]:
        return path in by_name and {"bits": by_name[path]}

    return replace(quantization, name="dynamic", predicate=predicate)


def _sensitivities(
    model: Any,
    calibration: Calibration,
    settings: dict[str, dict[str, Any]],
    low: int,
    progress: Progress,
) -> dict[str, float]:
    """How much better each module would be with many bits, in nats for each of its weights."""
    from mlx_lm.quant import dynamic_quant

    shown = CalibratedModel(model, calibration)
    found: dict[str, float] = {}
    for group_size in sorted({s["group_size"] for s in settings.values()}):
        shown.show([path for path, s in settings.items() if s["group_size"] == group_size])
        with reported(dynamic_quant, progress, "estimating sensitivities"):
            bits = (low, group_size, HIGH_BITS, group_size)
            result = dynamic_quant.estimate_sensitivities(shown, shown.numbers, *bits, batch_size=1)
        found |= {path.removeprefix("model."): value for path, value in result}
    return found
