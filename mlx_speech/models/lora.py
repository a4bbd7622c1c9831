"""Low-rank adapters (https://arxiv.org/abs/2106.09685) that can be switched per call.

The format is peft's: adapter_config.json beside adapter_model.safetensors. The base weights are
left alone; an adapted layer adds its low-rank term, or does not, as `use_adapter` says around it
and else as its model does by default.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import CheckpointError
from .base import PretrainedModel

# per context, hence per thread: two callers of one model do not see each other's choice
_adapter_in_use: ContextVar[bool | None] = ContextVar("adapter_in_use", default=None)


@contextmanager
def use_adapter(enabled: bool):
    """Within it, adapted layers that are called apply their adapter, or do not."""
    token = _adapter_in_use.set(enabled)
    try:
        yield
    finally:
        _adapter_in_use.reset(token)


class LoRALinear(nn.Module):
    """A linear layer with a switchable low-rank term: `scale * x A^T B^T`."""

    def __init__(
        self,
        base: nn.Module,
        lora_a: mx.array,
        lora_b: mx.array,
        scale: float,
        on_by_default: bool,
    ):
        super().__init__()
        self.on_by_default = on_by_default
        self.base = base
        self.lora_a = lora_a
        self.lora_b = lora_b
        self.scale = scale

    def __call__(self, x: mx.array) -> mx.array:
        out = self.base(x)
        chosen = _adapter_in_use.get()
        if self.on_by_default if chosen is None else chosen:
            out = out + self.scale * ((x @ self.lora_a.T) @ self.lora_b.T)
        return out


@dataclass
class LoraConfig:
    """What counts of peft's adapter_config.json."""

    r: int = 8
    lora_alpha: float = 8
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LoraConfig:
        """Read adapter_config.json.

        Raises:
            CheckpointError: the adapter is of a kind that a low-rank sum does not express.
        """
        kind = data.get("peft_type", "LORA")
        if kind != "LORA":
            raise CheckpointError(f"adapter_config.json: peft_type {kind!r} is not supported")
        for option in ("use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias"):
            if data.get(option):
                raise CheckpointError(f"adapter_config.json: {option} is not supported")
        if data.get("bias", "none") != "none" or data.get("modules_to_save"):
            raise CheckpointError("adapter_config.json: trained biases or modules: not supported")
        names = cls.__dataclass_fields__
        return cls(**{k: v for k, v in data.items() if k in names and v is not None})

    def rank(self, module: str) -> int:
        """Rank of the adapter on the module of that name."""
        return _match(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Factor on the low-rank term: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
        rank = self.rank(module)
        return _match(self.alpha_pattern, module, self.lora_alpha) / (
            rank**0.5 if self.use_rslora else rank
        )


def _match(patterns: dict[str, Any], module: str, default):
    """peft's rule: a pattern is a regular expression for the end of the module's name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def apply_adapter(
    model: PretrainedModel, config: LoraConfig, weights: dict[str, mx.array], dtype: mx.Dtype
) -> None:
    """Wrap the layers that an adapter names.

    Args:
        weights: `<module>.lora_A.weight` (rank, in) and `<module>.lora_B.weight` (out, rank), under
            the names of the adapter's file, which are also what the patterns in `config` are about.
        dtype: what the model computes in.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or names no layer of the model.
    """
    modules = dict(model.named_modules())
    pairs: dict[str, dict[str, mx.array]] = {}
    for name, value in weights.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match is None:
            raise CheckpointError(f"adapter_model.safetensors: unexpected tensor {name}")
        pairs.setdefault(match[1], {})[match[2]] = value.astype(dtype)
    for name, pair in pairs.items():
        path = model.rename(name)
        base = modules.get(path)
        if not isinstance(base, nn.Linear | nn.QuantizedLinear):
            raise CheckpointError(f"adapter_model.safetensors: {name} is no layer of this model")
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(f"adapter_model.safetensors: {name} lacks lora_A or lora_B")
        rank = config.rank(name)
        outputs, inputs = _linear_shape(base)
        expected = ((rank, inputs), (outputs, rank))
        if (pair["A"].shape, pair["B"].shape) != expected:
            raise CheckpointError(
                f"adapter_model.safetensors: {name} has shapes {pair['A'].shape} and "
                f"{pair['B'].shape}, expected {expected[0]} and {expected[1]}"
            )
        parent, _, leaf = path.rpartition(".")
        adapted = LoRALinear(
            base, pair["A"], pair["B"], config.scale(name), model.adapter_by_default
        )
        setattr(modules[parent], leaf, adapted)


def _linear_shape(layer: nn.Module) -> tuple[int, int]:
    outputs, inputs = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        inputs = inputs * 32 // layer.bits
    return outputs, inputs
