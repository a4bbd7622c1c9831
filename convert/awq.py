"""AWQ (https://arxiv.org/abs/2306.00978) over a decoder, by mlx-lm, one layer after the other.

Inputs of linear layers that are large have their weights multiplied, so that these are rounded less
in proportion, and what makes the inputs divided, by factors with which the layer's output comes
closest to what it was. Weights are not clipped: that brings each layer closer, and the logits of
the tiny model further away, whatever its rounding errors happen to be. In memory are a layer and
the inputs of its linear layers of all utterances.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_speech.errors import InputError
from mlx_speech.layers.lora import LoRALinear

from .blocks import Decoder
from .calibration import Progress
from .reporting import reported

_GRID = 20  #: factors that are tried, as in mlx-lm
_QKV = ("q_proj", "k_proj", "v_proj")


def common_settings(settings: dict[str, Any]) -> dict[str, int]:
    """`bits` and `group_size` of all linear layers of a decoder.

    Args:
        settings: see `linear_settings`. Groups that a layer is too narrow for are smaller in all.

    Raises:
        InputError: some have other bits, or cannot be quantized.
    """
    odd = next((path for path, s in settings.items() if not s), None)
    bits = {s["bits"] for s in settings.values() if s}
    if odd is not None or len(bits) > 1:
        found = (
            f"{odd} keeps its type" if odd else f"here are {' and '.join(map(str, sorted(bits)))}"
        )
        text = (
            "{method} awq has one number of bits for all linear layers of a decoder, but {found}; "
            "leave out {quant_predicate}, or take another {method}"
        )
        raise InputError.about(text, found=found)
    return {"bits": bits.pop(), "group_size": min(s["group_size"] for s in settings.values())}


def quantize(decoder: Decoder, progress: Progress) -> None:
    """Quantize a decoder in place. Its adapter, the inputs of whose layers are divided too, is
    changed so that it does what it did."""
    from mlx_lm.quant import awq

    settings = common_settings(decoder.settings)
    decoder.quantize_ends()
    adapted = [_AdaptedLinear.replace(block) for block in decoder.blocks]
    patterns = {_adapted(block) for block in decoder.blocks}
    scales = [scale for pattern in patterns for scale in _scales(awq.ScaleConfig, pattern)]
    # "proj" is in the names of all
    config = awq.AWQConfig("embed_tokens", "lm_head", no_clip=["proj"], scale_configs=scales)
    view = _View(decoder)
    with reported(awq, progress, "layers"):
        awq.awq_quantize(view, view.numbers, config, **settings, n_grid=_GRID)
    for put_back in adapted:
        put_back()


class _View:
    """A decoder as mlx-lm's function calls one, with prompts for embeddings of token ids."""

    def __init__(self, decoder: Decoder):
        states = decoder.inputs()
        longest = max(state.shape[1] for state in states)
        # rows are filled up with themselves: whatever is searched for is searched for in speech
        rows = [mx.tile(state, (1, -(-longest // state.shape[1]), 1)) for state in states]
        self.inputs = mx.concatenate([row[:, :longest] for row in rows])
        self.numbers = mx.zeros(self.inputs.shape[:2], mx.int32)
        self.layers, self.model = decoder.blocks, {"embed_tokens": self}

    def __contains__(self, name: str) -> bool:
        return False  # the head is quantized already, and so are the embeddings

    def to_quantized(self, **settings: int) -> "_View":
        return self

    def __call__(self, numbers: mx.array) -> mx.array:
        return self.inputs


def _adapted(block: nn.Module) -> frozenset[str]:
    """Names of the layers in a block that have an adapter."""
    return frozenset(
        p.removesuffix(".low_rank") for p, m in block.named_modules() if isinstance(m, _LowRank)
    )


def _scales(make: Callable[..., Any], adapted: frozenset[str]) -> list[Any]:
    """What is divided and what is multiplied, in blocks with an adapter on these layers."""

    def names(part: str, layers: tuple[str, ...]) -> list[str]:
        base = [f"{name}.base" if f"{part}.{name}" in adapted else name for name in layers]
        return base + [f"{name}.low_rank" for name in layers if f"{part}.{name}" in adapted]

    use = {"use_config": lambda block: _adapted(block) == adapted}
    attention = {"block": "self_attn", "kwargs": ["mask"], **use}
    found = [
        make(prev="input_layernorm", layers=names("self_attn", _QKV), **attention),
        make(
            prev="post_attention_layernorm",
            layers=names("mlp", ("gate_proj", "up_proj")),
            block="mlp",
            **use,
        ),
    ]
    # between two linear layers there is no place for those of an adapter
    if not {"mlp.up_proj", "mlp.down_proj"} & adapted:
        found.insert(1, make(prev="mlp.up_proj", layers=["mlp.down_proj"], **use))
    return found


class _LowRank(nn.Module):
    """The inner weights of an adapter, (rank, inputs): multiplied, but neither clipped nor
    quantized, as nothing is that is no `nn.Linear`."""

    def __init__(self, weight: mx.array):
        super().__init__()
        self.weight = weight


class _AdaptedLinear(nn.Module):
    """A `LoRALinear`, switched on, in which mlx-lm's function finds all that has inputs."""

    def __init__(self, layer: LoRALinear):
        super().__init__()
        self.base, self.low_rank = layer.base, _LowRank(layer.lora_a)
        self.lora_b, self.scale = layer.lora_b, layer.scale

    def __call__(self, x: mx.array) -> mx.array:
        return self.base(x) + self.scale * ((x @ self.low_rank.weight.T) @ self.lora_b.T)

    @classmethod
    def replace(cls, block: nn.Module) -> Callable[[], None]:
        """Have them in the place of a block's adapted layers; gives what undoes it."""
        places = [
            (part, name, layer)
            for part in (block.self_attn, block.mlp)
            for name, layer in part.children().items()
            if isinstance(layer, LoRALinear)
        ]
        for part, name, layer in places:
            part[name] = cls(layer)

        def put_back() -> None:
            for part, name, layer in places:
                layer.base, layer.lora_a = part[name].base, part[name].low_rank.weight
                part[name] = layer

        return put_back
