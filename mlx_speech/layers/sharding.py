"""Decoder layers that several processes share: each rank has some of the heads, and some of the
inner units of the feed-forward part (tensor parallelism, https://arxiv.org/abs/1909.08053).

Of q, k, v, gate and up a rank has some rows ("all-to-sharded"), of o and down some columns
("sharded-to-all"). They stay plain linear layers, hence may be quantized and adapted as any others:
what o and down give, their low-rank terms included, is one term of a sum over all ranks.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Self

import mlx.core as mx

from ..errors import UnsupportedOptionError
from .attention import AttentionMask

#: a tensor of a layer by the end of its name, in a model or in a checkpoint: module and tensor
_SHARDED = re.compile(
    r"(?:^|\.)(?:self_attn|mlp)\.(?:(?:base|saved)\.)*(?:([qkv]|gate|up)|o|down)_proj\."
    r"(?:(?:base|saved|base_layer)\.)*(weight|bias|scales|biases|lora_[abAB])"
    r"(?:\.(?:default\.)?weight)?$"
)


class ShardingGroup:
    """The ranks that share the layers of a decoder, and which of them this is.

    Args:
        group: what they exchange sums in.
        counts: what is shared out, as in "KV heads" -> how many.
        whose: the model, for a message.

    Raises:
        UnsupportedOptionError: something cannot be shared out evenly.
    """

    def __init__(self, group: mx.distributed.Group, counts: Mapping[str, int], whose: str):
        self.group, self.rank, self.size = group, group.rank(), group.size()
        self._counts, self._whose = counts, whose
        check_even(counts, self.size, whose)

    def all_sum(self, x: mx.array) -> mx.array:
        """The sum of what all ranks have, on each of them."""
        return mx.distributed.all_sum(x, group=self.group)

    def axis(self, name: str, shape: tuple[int, ...]) -> int | None:
        """The axis along which a rank has its part of a tensor; None where it has all of it.

        A shape that cannot be divided is left as it is, since it does not fit the model.

        Args:
            name: of the tensor, in a model, in a checkpoint or in an adapter.

        Raises:
            UnsupportedOptionError: a row of quantized weights cannot be divided.
        """
        axis = _axis(name, shape)
        if axis is None or shape[axis] % self.size == 0:
            return axis
        if name.endswith(".scales"):
            layer = name.rpartition(".")[0].rpartition(".")[2]
            groups = {f"groups of quantized weights in a row of {layer}": shape[axis]}
            check_even({**self._counts, **groups}, self.size, self._whose)
        return None

    def whole_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of all of a tensor of which a rank's part has this one."""
        axis = _axis(name, shape)
        if axis is None:
            return shape
        return *shape[:axis], shape[axis] * self.size, *shape[axis + 1 :]

    def part(self, name: str, tensor: mx.array) -> mx.array:
        """This rank's part of a tensor; see `axis`."""
        axis = self.axis(name, tensor.shape)
        if axis is None:
            return self.term(name, tensor)
        length = tensor.shape[axis] // self.size
        own = slice(self.rank * length, (self.rank + 1) * length)
        # a copy, so that what it is part of can be freed
        return mx.contiguous(tensor[own] if axis == 0 else tensor[..., own])

    def term(self, name: str, tensor: mx.array) -> mx.array:
        """A tensor that all ranks have; a bias that each would add to the sum is zero on all but
        one."""
        match = _SHARDED.search(name)
        added = match is not None and match[1] is None and match[2] == "bias"
        return mx.zeros_like(tensor) if added and self.rank else tensor

    def own_heads(
        self, mask: mx.array | AttentionMask | str | None, heads: int
    ) -> mx.array | AttentionMask | str | None:
        """A mask of all query heads as one of this rank's; others are for any heads."""
        if isinstance(mask, AttentionMask):
            return AttentionMask(*(self.own_heads(part, heads) for part in mask))
        if not isinstance(mask, mx.array) or mask.ndim != 4 or mask.shape[1] != heads:
            return mask
        own = heads // self.size
        return mask[:, self.rank * own : (self.rank + 1) * own]

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # a copied layer sums over the same ranks


def _axis(name: str, shape: tuple[int, ...]) -> int | None:
    match = _SHARDED.search(name)
    if match is None or 0 in (shape or (0,)):
        return None
    rows, tensor = match[1] is not None, match[2]
    if tensor in (("lora_a", "lora_A") if rows else ("lora_b", "lora_B", "bias")):
        return None
    return 0 if rows else len(shape) - 1


def check_even(counts: Mapping[str, int], size: int, whose: str) -> None:
    """Check that ranks can share out each of some things.

    Args:
        counts: what is shared out, as in "KV heads" -> how many.
        size: how many ranks there are.
        whose: the model, for the message, which says how many ranks could.

    Raises:
        UnsupportedOptionError: they cannot.
    """
    uneven = next((what for what, count in counts.items() if count % size), None)
    if uneven is None:
        return
    common = math.gcd(*counts.values())
    able = [str(number) for number in range(2, common + 1) if common % number == 0]
    *others, last = able or ["no more than one"]
    takes = f"{', '.join(others)} or {last}" if others else last
    raise UnsupportedOptionError(
        f"{whose} has {counts[uneven]} {uneven}: tensor parallelism takes {takes} "
        f"process{'es' if able else ''}, not {size}"
    )
