"""What a model needs, counted: the weights that a token is decoded with, and the operations that
its encoder takes."""

import math
import re
from collections import Counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint.quantization import part_of
from ..layers.lora import SavedModule

#: keys and values of the recording are computed once, not for each token
_ONCE = re.compile(r"\.encoder_attn\.[kv]_proj\.")


def weight_bytes(model: nn.Module) -> int:
    """Of all tensors."""
    return sum(value.nbytes for _, value in tree_flatten(model.parameters()))


def decoding_bytes(model: Any) -> int:
    """Of the weights that one step of decoding reads, however many rows it is for.

    All of the decoder's, with the adapter on, but the rows of the embeddings that it does not look
    up; where these are the head as well, it needs the whole table. The cache is not among them.
    """
    replaced = tuple(f"{p}.base." for p, m in model.named_modules() if isinstance(m, SavedModule))
    tied = model.get_output_embeddings() is model.get_input_embeddings()
    return sum(
        value.nbytes
        for name, value in tree_flatten(model.parameters())
        if part_of(name) == "decoder"
        and not _ONCE.search(name)
        and not name.startswith(replaced)
        and (tied or not name.startswith(model.tied_embeddings))
    )


def decoder_bits(model: nn.Module) -> int:
    """Bits of most linear layers of the decoder, or of all where it has none."""
    modules = model.named_modules()
    linear = [(p, m) for p, m in modules if isinstance(m, nn.Linear | nn.QuantizedLinear)]
    layers = [m for path, m in linear if part_of(path) == "decoder"] or [m for _, m in linear]
    quantized = [layer.bits for layer in layers if isinstance(layer, nn.QuantizedLinear)]
    whole = [8 * m.weight.dtype.size for m in layers if isinstance(m, nn.Linear)]
    return Counter(quantized + whole).most_common(1)[0][0]


def encoder_flops(model: Any, features: mx.array) -> int:
    """Floating-point operations of the products and convolutions that the encoder makes of
    features, as many as its graph has; nothing is computed for it.

    An addition and a multiplication are two. What is done to single elements, a depthwise
    convolution on a CPU included, is not counted: it is a matter of memory, not of arithmetic.
    """
    total = 0

    def count(event: dict[str, Any]) -> None:
        nonlocal total
        if event["type"] == "primitive" and event["name"] in _FLOPS:
            shapes = [shape for _, shape, _ in event["inputs"]]
            (_, output, _), *_ = event["outputs"]
            total += _FLOPS[event["name"]](shapes, output)

    def encode(features: mx.array) -> mx.array:
        return next(model.audio_stages(features))[1]

    mx.export_function(count, encode, features)
    return total


def _product(shapes: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """(…, n, k) times (…, k, m), or a quantized (m, …)."""
    return 2 * math.prod(output) * shapes[0][-1]


def _convolution(shapes: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """Weights are (channels out, width, channels in of each group)."""
    return 2 * math.prod(output) * math.prod(shapes[1][1:])


def _attention(shapes: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """Queries (batch, heads, L, head size), keys (batch, KV heads, S, head size)."""
    return 4 * math.prod(output) * shapes[1][2]


#: name of MLX's primitive -> its operations, by the shapes of its inputs and its output
_FLOPS = {
    "Matmul": _product,
    "AddMM": _product,
    "QuantizedMatmul": _product,
    "Convolution": _convolution,
    "ScaledDotProductAttention": _attention,
}
