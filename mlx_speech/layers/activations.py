"""Activations; SiLU and GLU that are fast on an x86 CPU too.

MLX's exponential is scalar there, 14 ns an element, so that these would take a third of a Conformer
block's time. On a CPU the sigmoid is therefore 1/2 + tanh(x/2)/2, with the tanh of the Eigen
library: a ratio of two polynomials, one vectorised loop, within 3e-7 of the true value.
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

# tanh(x) = x P(x^2) / Q(x^2) up to +-_LIMIT, where float32 has reached 1; lowest power first
_LIMIT = 7.90531110763549805
_P = (
    4.89352455891786e-03,
    6.37261928875436e-04,
    1.48572235717979e-05,
    5.12229709037114e-08,
    -8.60467152213735e-11,
    2.00018790482477e-13,
    -2.76076847742355e-16,
)
_Q = (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x)."""
    return _gated(x, x) if _on_cpu() else nn.silu(x)


def glu(x: mx.array) -> mx.array:
    """The first half of the last axis times the sigmoid of the second."""
    return _gated(*mx.split(x, 2, axis=-1)) if _on_cpu() else nn.glu(x)


def _on_cpu() -> bool:
    return mx.default_device().type == mx.DeviceType.cpu


@mx.compile
def _gated(x: mx.array, gate: mx.array) -> mx.array:
    half = mx.clip(gate.astype(mx.float32) * 0.5, -_LIMIT, _LIMIT)
    # short sums instead of Horner's rule: MLX fuses no chain of more than 11 operations
    p, q = _P, _Q
    x2 = half * half
    x4 = x2 * x2
    low = (p[0] + p[1] * x2) + (p[2] + p[3] * x2) * x4
    high = (p[4] + p[5] * x2) + p[6] * x4
    numerator = low + high * (x4 * x4)
    denominator = (q[0] + q[1] * x2) + (q[2] + q[3] * x2) * x4
    return (x * (0.5 + (0.5 * half) * numerator / denominator)).astype(x.dtype)


def relu2(x: mx.array) -> mx.array:
    """The square of the positive part, squared in float32: half precisions overflow or lose it."""
    return mx.square(mx.maximum(x, 0).astype(mx.float32)).astype(x.dtype)


#: by the name that configurations have for it
ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": silu,
    "swish": silu,
    "gelu": nn.gelu,
    "gelu_python": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "gelu_new": nn.gelu_approx,
    "gelu_fast": nn.gelu_approx,
    "quick_gelu": nn.gelu_fast_approx,
    "relu": nn.relu,
    "relu2": relu2,
    "relu6": nn.relu6,
    "leaky_relu": nn.leaky_relu,
    "mish": nn.mish,
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
}
