"""Which of a model's attention has a fused kernel on Metal, whatever device this runs on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..layers.attention import AttentionShape, is_fused, recorded_shapes


@dataclass(frozen=True)
class AttentionUse:
    """Calls of attention that differ in the number of keys alone, which is from `least_keys` to
    `most_keys`; the other fields are as in `is_fused`.

    part: of the model that makes them.
    """

    part: str
    num_queries: int
    least_keys: int
    most_keys: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    fused: bool


def attention_uses(model: Any, features: mx.array, decode: Callable[[], Any]) -> list[AttentionUse]:
    """All that a model asks of attention on the way from features to a text.

    Args:
        features: of a recording, whose encoding is not computed for this.
        decode: decodes it.
    """
    found: dict[str, list[AttentionShape]] = {}
    with recorded_shapes() as shapes:
        for stage, _ in model.audio_stages(features):
            found[stage] = list(shapes)
            shapes.clear()
        # an encoder-decoder encodes what it decodes
        known = {shape for stage in found.values() for shape in stage}
        decode()
        found["decoder"] = [shape for shape in shapes if shape not in known]
    return [use for part, shapes in found.items() for use in _uses(part, shapes)]


def _uses(part: str, shapes: list[AttentionShape]) -> list[AttentionUse]:
    """The same in as few as possible, most queries first."""
    keys: dict[tuple[AttentionShape, bool], list[int]] = {}
    for shape in sorted(shapes, reverse=True):
        same = shape._replace(num_keys=0), is_fused(*shape)
        keys.setdefault(same, []).append(shape.num_keys)
    return [
        AttentionUse(
            part,
            shape.num_queries,
            min(numbers),
            max(numbers),
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.causal,
            fused,
        )
        for (shape, fused), numbers in keys.items()
    ]
