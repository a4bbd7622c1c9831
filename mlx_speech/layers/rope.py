"""Rotary position embeddings (https://arxiv.org/abs/2104.09864), half-rotation form.

The frequency rules are those that Hugging Face configurations name in `rope_parameters`. Each is a
function of the parameters, the rotated dimensions and the positions that are in use, and gives the
inverse frequencies (dim / 2,) and a factor on queries and keys.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypedDict

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from ..fields import Range, fit_items

#: (batch, heads, length, head_dim) -> the same, rotated
Rotation = Callable[[mx.array], mx.array]
_Positive = Annotated[float, Range(1e-6, 1e6)]


class RopeParameters(TypedDict, total=False):
    """The parameters of all rules, with the values that make sense."""

    rope_type: str
    rope_theta: Annotated[float, Range(1, 1e12, exclusive=True)]
    factor: _Positive | None
    original_max_position_embeddings: Annotated[int, Range(2, 2**31 - 1)] | None
    attention_factor: _Positive | None
    short_factor: list[_Positive]
    long_factor: list[_Positive]
    low_freq_factor: _Positive
    high_freq_factor: _Positive
    beta_fast: _Positive | None
    beta_slow: _Positive | None
    mscale: _Positive | None
    mscale_all_dim: Annotated[float, Range(0, 1e6)] | None
    truncate: bool
    partial_rotary_factor: float


def normalize_rope_parameters(
    rope_parameters: dict | None, rope_theta: float | None, rope_scaling: dict | None
) -> dict[str, Any]:
    """One form out of the two in which checkpoints name their rotary embedding.

    Older ones have a flat `rope_theta` beside an optional `rope_scaling` with `type` or
    `rope_type`; newer ones nest everything in `rope_parameters`.

    Raises:
        InputError: a parameter has the wrong type, or makes no sense.
    """
    merged = {**(rope_scaling or {}), **(rope_parameters or {})}
    merged.setdefault("rope_type", merged.pop("type", "default"))
    merged.setdefault("rope_theta", 10000.0 if rope_theta is None else rope_theta)
    return fit_items(RopeParameters, merged, "rope_parameters.")


def _inverse_frequencies(base: float, dim: int) -> np.ndarray:
    return 1.0 / base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)


def _default(parameters, dim, length):
    return _inverse_frequencies(parameters["rope_theta"], dim), 1.0


def _linear(parameters, dim, length):
    return _inverse_frequencies(parameters["rope_theta"], dim) / parameters["factor"], 1.0


def _dynamic(parameters, dim, length):
    """NTK-aware: beyond the maximum the base grows with the length."""
    factor, maximum = parameters["factor"], parameters["max_position_embeddings"]
    stretch = factor * max(length, maximum) / maximum - (factor - 1)
    return _inverse_frequencies(parameters["rope_theta"] * stretch ** (dim / (dim - 2)), dim), 1.0


def _longrope(parameters, dim, length):
    """LongRoPE (https://arxiv.org/abs/2402.13753): a factor for each frequency, from one of two
    lists."""
    original = parameters["original_max_position_embeddings"]
    factors = parameters["long_factor" if length > original else "short_factor"]
    given, needed = len(factors), dim // 2
    if given != needed:
        raise CheckpointError(f"config.json: longrope has {given} factors for {needed} frequencies")
    factor = parameters.get("factor") or parameters["max_position_embeddings"] / original
    attention_factor = parameters.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0
        if factor > 1.0:
            attention_factor = math.sqrt(1 + math.log(factor) / math.log(original))
    return _inverse_frequencies(parameters["rope_theta"], dim) / np.array(factors), attention_factor


def _llama3(parameters, dim, length):
    """Llama 3.1: keep short wavelengths, stretch long ones, blend in between."""
    inv_freq = _inverse_frequencies(parameters["rope_theta"], dim)
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    wavelength = 2 * math.pi / inv_freq
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 - blend) * inv_freq / factor + blend * inv_freq, 1.0


def _yarn(parameters, dim, length):
    """YaRN (https://arxiv.org/abs/2309.00071): interpolate the slow half of the spectrum."""
    base, original = parameters["rope_theta"], parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or parameters["max_position_embeddings"] / original

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

    fast, slow = parameters.get("beta_fast") or 32, parameters.get("beta_slow") or 1
    low, high = dimension(fast), dimension(slow)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    inv_freq = _inverse_frequencies(base, dim)
    interpolate = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return inv_freq / factor * interpolate + inv_freq * (1 - interpolate), attention_factor


_RULES = {
    rule.__name__.lstrip("_"): rule
    for rule in (_default, _linear, _dynamic, _yarn, _llama3, _longrope)
}
_LENGTH_DEPENDENT = ("dynamic", "longrope")


class RotaryEmbedding:
    """The rotations of one model.

    Args:
        dim: size of a head.
        parameters: as `normalize_rope_parameters` makes them.
        max_position_embeddings: how many positions the model was made for.

    Raises:
        CheckpointError: the rule that `rope_parameters` names is not known or lacks a parameter.
    """

    def __init__(self, dim: int, parameters: dict[str, Any], max_position_embeddings: int):
        kind = parameters["rope_type"]
        if kind not in _RULES:
            raise CheckpointError(
                f"config.json: rope_type {kind!r} is not supported; supported are "
                + ", ".join(_RULES)
            )
        if parameters.get("partial_rotary_factor", 1.0) != 1.0:
            raise CheckpointError(
                f"config.json: partial_rotary_factor {parameters['partial_rotary_factor']!r} is "
                "not supported; heads are rotated whole"
            )
        self.dim = dim
        self.rule = _RULES[kind]
        self.parameters = {**parameters, "max_position_embeddings": max_position_embeddings}
        original = parameters.get("original_max_position_embeddings") or max_position_embeddings
        self.parameters["original_max_position_embeddings"] = original
        self.depends_on_length = kind in _LENGTH_DEPENDENT
        try:
            wavelengths, factor = self._for_length(0)
        except KeyError as error:
            raise CheckpointError(f"config.json: rope_parameters lack {error}") from error
        except (TypeError, ArithmeticError) as error:  # a factor that is null, or equal ones
            text = f"config.json: rope_parameters make no sense together: {self.parameters}"
            raise CheckpointError(text) from error
        self._frequencies = mx.array(wavelengths), factor

    @property
    def context_length(self) -> int:
        """Positions that the rule is made for. One that stretches the original positions reaches
        `factor` times as far, even if `max_position_embeddings` has kept its old value, as
        transformers asked for once; NTK-aware frequencies follow the length without end."""
        maximum, factor = self.parameters["max_position_embeddings"], self.parameters.get("factor")
        if self.rule is _dynamic:
            return 2**31 - 1
        original = self.parameters["original_max_position_embeddings"]
        stretched = self.rule is not _default and factor
        return max(maximum, int(factor * original)) if stretched else maximum

    def _for_length(self, length: int) -> tuple[np.ndarray, float]:
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            inv_freq, factor = self.rule(self.parameters, self.dim, length)
        # MLX wants wavelengths, the inverse of what the rules are written in
        return (1.0 / inv_freq).astype(np.float32), factor

    def rotation(
        self, start: int | mx.array, length: int, prompt_lengths: mx.array | None = None
    ) -> Rotation:
        """What rotates queries and keys of shape (batch, heads, length, head_dim).

        Args:
            start: position of the first token: one number, or one per row (batch,); or every
                token's position (batch, length).
            length: how many tokens there are.
            prompt_lengths: (batch,) positions of each row's prompt, of which these tokens are a
                part, or after which they come. Where frequencies depend on the length, those of
                the whole prompt apply to all of its parts, and behind it to each token those of
                its own position, as if it came alone. By default these tokens end the prompt.
        """
        if not self.depends_on_length:
            return self._rotation(start, *self._frequencies)
        if isinstance(start, mx.array) and start.ndim == 2:
            wavelengths, factor = self._for_length(start.max().item() + 1)
            return self._rotation(start, mx.array(wavelengths), factor)
        starts = start.tolist() if isinstance(start, mx.array) else [start]
        ends = [first + length for first in starts]
        if prompt_lengths is not None:
            ends = prompt_lengths.tolist()
            starts = starts * (len(ends) // len(starts))
        rows = list(zip(starts, ends, strict=True))
        if len({*rows}) == 1:
            return self._of_row(*rows[0], length)
        each = [self._of_row(*row, length) for row in rows]
        return lambda x: mx.concatenate([f(x[i : i + 1]) for i, f in enumerate(each)])

    def _of_row(self, start: int, prompt_length: int, length: int) -> Rotation:
        """Where frequencies depend on the length: in halves, until the same apply to all tokens.
        They change in one direction, so what is alike at both ends is so in between."""
        least, most = (max(prompt_length, start + count) for count in (1, length))
        wavelengths, factor = self._for_length(most)
        if least == most or np.array_equal(wavelengths, self._for_length(least)[0]):
            return self._rotation(start, mx.array(wavelengths), factor)
        half = length // 2
        first = self._of_row(start, prompt_length, half)
        second = self._of_row(start + half, prompt_length, length - half)
        return lambda x: mx.concatenate([first(x[:, :, :half]), second(x[:, :, half:])], axis=2)

    def _rotation(self, start: int | mx.array, wavelengths: mx.array, factor: float) -> Rotation:
        """The same frequencies for all tokens."""
        offset = start.flatten() if isinstance(start, mx.array) else start
        each = isinstance(start, mx.array) and start.ndim == 2
        rope = partial(mx.fast.rope, dims=self.dim, traditional=False, base=None, scale=1.0)
        rope = partial(rope, offset=offset, freqs=wavelengths)

        def rotate(x: mx.array) -> mx.array:
            if factor != 1.0:
                x = x * factor
            if not each:
                return rope(x)
            # the kernel takes one position per row, so each token becomes a row
            batch, heads, length, dim = x.shape
            tokens = x.swapaxes(1, 2).reshape(batch * length, heads, 1, dim)
            return rope(tokens).reshape(batch, length, heads, dim).swapaxes(1, 2)

        return rotate
