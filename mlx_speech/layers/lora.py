"""Low-rank adapters (https://arxiv.org/abs/2106.09685) that can be switched per call.

The base weights are left alone. An adapted layer adds its low-rank term, or does not, and of a
module that was trained as a whole the trained one is used, or the base's own, as `use_adapter` says
around it and else as its model does by default.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

T = TypeVar("T")

# per context, hence per thread: two callers of one model do not see each other's choice
_adapter_in_use: ContextVar[bool | None] = ContextVar("adapter_in_use", default=None)


@contextmanager
def use_adapter(enabled: bool | None):
    """Within it, adapted layers that are called apply their adapter, or do not; None: as if nothing
    was said."""
    token = _adapter_in_use.set(enabled)
    try:
        yield
    finally:
        _adapter_in_use.reset(token)


def adapter_in_use(default: T) -> bool | T:
    """What `use_adapter` says around this, or else the default."""
    chosen = _adapter_in_use.get()
    return default if chosen is None else chosen


class LoRALinear(nn.Module):
    """A linear layer with a switchable low-rank term: `scale * x A^T B^T`.

    Args:
        base: the layer.
        lora_a: (rank, in).
        lora_b: (out, rank).
        scale: factor on the term.
        on: whether the term is added where nothing is said.
        name: of the layer in the adapter's file.
    """

    def __init__(
        self,
        base: nn.Module,
        lora_a: mx.array,
        lora_b: mx.array,
        scale: float,
        on: bool,
        name: str = "",
    ):
        super().__init__()
        self.base, self.lora_a, self.lora_b = base, lora_a, lora_b
        self.scale, self.on_by_default, self.name = scale, on, name

    @property
    def weight(self) -> mx.array:
        """The base layer's."""
        return self.base.weight

    def __call__(self, x: mx.array) -> mx.array:
        out = self.base(x)
        if adapter_in_use(self.on_by_default):
            out = out + self.scale * ((x @ self.lora_a.T) @ self.lora_b.T)
        return out

    def stack(self, lora_a: mx.array, lora_b: mx.array, scale: float) -> None:
        """Add the term of a second adapter: both are one of a rank as large as theirs together."""
        dtype = self.lora_b.dtype
        ratio = scale / self.scale
        rescaled = (ratio * lora_b.astype(mx.float32)).astype(dtype)
        self.lora_a = mx.concatenate([self.lora_a, lora_a.astype(dtype)], axis=0)
        self.lora_b = mx.concatenate([self.lora_b, rescaled], axis=1)

    def to_lora(self, r: int, scale: float, dropout: float) -> nn.Module:
        """The layer that mlx-lm trains over this one: another term is added to what this gives,
        its own adapter included."""
        from mlx_lm.tuner.lora import LoRALinear as TrainedLinear

        sizes = self.lora_a.shape[1], self.lora_b.shape[0]
        layer = TrainedLinear(*sizes, r=r, dropout=dropout, scale=scale)
        layer.linear = self
        return layer

    def fused_weight(self) -> mx.array:
        """The weights of a plain layer that does what this does with its adapter on, in float32;
        the base is not quantized."""
        a, b = self.lora_a.astype(mx.float32), self.lora_b.astype(mx.float32)
        return self.base.weight.astype(mx.float32) + self.scale * (b @ a)


class SavedModule(nn.Module):
    """A module that was trained as a whole, over the base's own; the switch says which is used, and
    whose attributes this has.

    Args:
        base: the base's own.
        saved: the trained one.
        on: whether that is used where nothing is said.
    """

    def __init__(self, base: nn.Module, saved: nn.Module, on: bool):
        super().__init__()
        self.base, self.saved, self.on_by_default = base, saved, on

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._used()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name.startswith("__") or "saved" not in self:  # it is being copied
            raise AttributeError(name)
        return getattr(self._used(), name)

    def _used(self) -> Any:
        return self["saved" if adapter_in_use(self.on_by_default) else "base"]


def base_name(path: str) -> str | None:
    """What a module or tensor of an adapted model, by its path in it, is called in the model
    without adapters; None of what is the adapter's own."""
    parts = path.split(".")
    if parts[-1] in ("lora_a", "lora_b") or "saved" in parts:
        return None
    return ".".join(part for part in parts if part != "base")


def adapted_modules(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Modules that are used with the adapter on: the name of each in the model without adapters,
    its path in this one, itself. What is over a module has its name."""
    for path, module in model.named_modules():
        if ".base." not in f"{path}." and not path.endswith(".saved"):
            yield path.replace(".saved.", "."), path, module


def module_at(model: nn.Module, path: str) -> Any:
    """The module at a path, which is the model itself where that is empty."""
    place: Any = model
    for part in filter(None, path.split(".")):
        place = place[int(part)] if isinstance(place, list) else place[part]
    return place


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Have another module at a path."""
    parent, _, leaf = path.rpartition(".")
    place = module_at(model, parent)
    if isinstance(place, list):
        place[int(leaf)] = module
    else:
        setattr(place, leaf, module)
