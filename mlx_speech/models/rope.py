"""Rotary position embeddings (https://arxiv.org/abs/2104.09864), half-rotation form.

The frequency rules are those that Hugging Face configurations name in `rope_parameters`.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError


def normalize_rope_parameters(
    rope_parameters: dict | None, rope_theta: float | None, rope_scaling: dict | None
) -> dict[str, Any]:
    """One form out of the two in which checkpoints name their rotary embedding.

    Older ones have a flat `rope_theta` beside an optional `rope_scaling` with `type` or
    `rope_type`; newer ones nest everything in `rope_parameters`.
    """
    merged = {**(rope_scaling or {}), **(rope_parameters or {})}
    merged.setdefault("rope_type", merged.pop("type", "default"))
    if rope_theta is not None:
        merged.setdefault("rope_theta", rope_theta)
    merged.setdefault("rope_theta", 10000.0)
    return merged


def _linear(inv_freq, parameters, dim, max_positions):
    return inv_freq / parameters["factor"], 1.0


def _llama3(inv_freq, parameters, dim, max_positions):
    """Llama 3.1: keep short wavelengths, stretch long ones, blend in between."""
    factor = parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    original = parameters["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inv_freq
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 - blend) * inv_freq / factor + blend * inv_freq, 1.0


def _yarn(inv_freq, parameters, dim, max_positions):
    """YaRN (https://arxiv.org/abs/2309.00071): interpolate the slow half of the spectrum."""
    base = parameters["rope_theta"]
    original = parameters.get("original_max_position_embeddings") or max_positions
    factor = parameters.get("factor") or max_positions / original

    def mscale(scale, m=1.0):
        return 1.0 if scale <= 1 else 0.1 * m * math.log(scale) + 1.0

    attention_factor = parameters.get("attention_factor")
    if attention_factor is None:
        m, m_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        attention_factor = (
            mscale(factor, m) / mscale(factor, m_all) if m and m_all else mscale(factor)
        )

    def dimension(rotations):
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = dimension(parameters.get("beta_fast") or 32)
    high = dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    interpolate = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return inv_freq / factor * interpolate + inv_freq * (1 - interpolate), attention_factor


_SCALING_RULES = {
    "default": lambda inv_freq, *_: (inv_freq, 1.0),
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


class RotaryEmbedding:
    """Rotates queries and keys of shape (batch, heads, length, head_dim) by their positions.

    Raises:
        CheckpointError: the rule that `rope_parameters` names is not known.
    """

    def __init__(self, dim: int, parameters: dict[str, Any], max_position_embeddings: int):
        rule = _SCALING_RULES.get(parameters["rope_type"])
        if rule is None:
            raise CheckpointError(
                f"config.json: rope_type {parameters['rope_type']!r} is not supported; "
                f"supported are {', '.join(_SCALING_RULES)}"
            )
        inv_freq = 1.0 / parameters["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
        inv_freq, self.attention_factor = rule(inv_freq, parameters, dim, max_position_embeddings)
        self.dim = dim
        # MLX wants wavelengths, the inverse of what the rules are written in
        self.wavelengths = mx.array((1.0 / inv_freq).astype(np.float32))

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """Rotate `x`, whose first position is `offset` (one number, or one per batch row)."""
        if self.attention_factor != 1.0:
            x = x * self.attention_factor
        return mx.fast.rope(
            x,
            self.dim,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self.wavelengths,
        )
