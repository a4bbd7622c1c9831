"""The one way into MLX's fused attention.

On Metal a fused kernel is taken for some shapes (`is_fused`); the rest falls back to an unfused
product silently, so every model here keeps inside them (tests/layers/test_attention.py).

Keys and values are never tiled to the number of query heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import mlx.core as mx

from ..errors import InputError
from .token_ids import as_mlx

#: up to this many queries MLX has a kernel for vectors, above it the full one
_VECTOR_QUERIES = 8
_VECTOR_HEAD_DIMS = (64, 96, 128)
_FULL_HEAD_DIMS = (64, 72, 80, 96, 128)
#: queries times query heads per key head that the kernel for vectors takes
_VECTOR_ROWS = 32


class Quantized(NamedTuple):
    """Keys or values as `mx.quantize` made them, in groups along the last axis."""

    data: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int


class AttentionMask(NamedTuple):
    """A boolean mask for queries some of which may have no key.

    allowed: (…, L, S), where those have themselves, lest they turn into NaN.
    seen: (…, L, 1), false for them: their result is zero, as it is in torch.
    """

    allowed: mx.array
    seen: mx.array


class AttentionShape(NamedTuple):
    """What decides whether attention is fused; see `is_fused`."""

    num_queries: int
    num_keys: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool


# per context, hence per thread
_recorded: ContextVar[list[AttentionShape] | None] = ContextVar("recorded_shapes", default=None)


@contextmanager
def recorded_shapes() -> Iterator[list[AttentionShape]]:
    """Within it, the list that it gives takes in what MLX's attention is asked for, call by call,
    also where nothing is evaluated."""
    shapes: list[AttentionShape] = []
    token = _recorded.set(shapes)
    try:
        yield shapes
    finally:
        _recorded.reset(token)


def is_fused(
    num_queries: int, num_keys: int, heads: int, kv_heads: int, head_dim: int, causal: bool
) -> bool:
    """Whether MLX has a fused kernel on Metal for attention of this shape.

    - More than 8 queries: head size 64, 72, 80, 96 or 128, with or without an array as mask;
      `"causal"` only if there are no more queries than keys.
    - Up to 8 queries: head size 64, 96 or 128, no more queries than keys, and queries times query
      heads per key head at most 32.

    Args:
        num_queries, num_keys: of each row of the batch.
        heads, kv_heads: of the queries, and of keys and values.
        head_dim: of all three.
        causal: the mask is `"causal"`, not an array or `None`.
    """
    if num_queries > _VECTOR_QUERIES:
        return head_dim in _FULL_HEAD_DIMS and (not causal or num_queries <= num_keys)
    few = num_queries <= num_keys and num_queries * (heads // kv_heads) <= _VECTOR_ROWS
    return few and head_dim in _VECTOR_HEAD_DIMS


def scaled_dot_product_attention(
    queries: mx.array,
    keys: mx.array | Quantized,
    values: mx.array | Quantized,
    *,
    scale: float,
    mask: mx.array | AttentionMask | str | None = None,
    dropout: float = 0.0,
    weights: list[mx.array] | None = None,
) -> mx.array:
    """Softmax attention. With one of the last two arguments no kernel is fused.

    Args:
        queries: (batch, query heads, L, head_dim).
        keys, values: (batch, key heads, S, head_dim); query heads are a multiple of key heads.
        scale: factor on the scores.
        mask: `None`, `"causal"`, a boolean array (true where attention is allowed) or an additive
            one in the queries' dtype, broadcastable to (batch, query heads, L, S); or an
            `AttentionMask`.
        dropout: share of the weights to leave out at random.
        weights: if given, the weights (batch, query heads, L, S) are appended to it.

    Returns:
        (batch, query heads, L, head_dim).
    """
    allowed, seen = mask if isinstance(mask, AttentionMask) else (mask, None)
    if isinstance(keys, Quantized) or dropout or weights is not None:
        shares = attention_weights(queries, keys, scale=scale, mask=allowed)
        if dropout:
            kept = mx.random.bernoulli(1 - dropout, shares.shape)
            shares = mx.where(kept, shares / (1 - dropout), 0)
        if weights is not None:
            weights.append(shares)
        out = _multiply(shares, values)
    else:
        if (shapes := _recorded.get()) is not None:
            (_, heads, num_queries, head_dim), (_, kv_heads, num_keys, _) = (
                queries.shape,
                keys.shape,
            )
            causal = isinstance(allowed, str)
            shape = AttentionShape(num_queries, num_keys, heads, kv_heads, head_dim, causal)
            shapes.append(shape)
        out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=allowed)
    return out if seen is None else mx.where(seen, out, 0)


def attention_weights(
    queries: mx.array,
    keys: mx.array | Quantized,
    *,
    scale: float,
    mask: mx.array | str | None = None,
) -> mx.array:
    """What each query makes of each key: (batch, query heads, L, S), rows that sum to 1; arguments
    as in `scaled_dot_product_attention`."""
    scores = _multiply(queries * scale, keys, transpose=True)
    if isinstance(mask, str):
        mask = causal_mask(mx.ones((1, scores.shape[-1])), scores.shape[-2])
    if isinstance(mask, mx.array) and mask.dtype == mx.bool_:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return mx.softmax(scores, axis=-1, precise=True)


def _multiply(x: mx.array, by: mx.array | Quantized, transpose: bool = False) -> mx.array:
    """Of each query head with its key head: the query heads of one become rows, so that nothing is
    tiled."""
    batch, heads, length, width = x.shape
    key_heads = (by.data if isinstance(by, Quantized) else by).shape[1]
    rows = x.reshape(batch, key_heads, heads // key_heads * length, width)
    if isinstance(by, Quantized):
        product = mx.quantized_matmul(rows, *by[:3], transpose, by.group_size, by.bits)
    else:
        product = rows @ (by.swapaxes(-1, -2) if transpose else by)
    return product.reshape(batch, heads, length, -1)


def split_heads(x: mx.array, num_heads: int) -> mx.array:
    """(batch, length, heads * head_dim) -> (batch, heads, length, head_dim)."""
    batch, length, _ = x.shape
    return x.reshape(batch, length, num_heads, -1).swapaxes(1, 2)


def merge_heads(x: mx.array) -> mx.array:
    """(batch, heads, length, head_dim) -> (batch, length, heads * head_dim)."""
    batch, _, length, _ = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, -1)


def causal_mask(attention_mask: mx.array, num_queries: int) -> mx.array:
    """Causal attention over a padded batch.

    Args:
        attention_mask: (batch, S), nonzero at real tokens; the queries are the last of them.
        num_queries: how many queries there are.

    Returns:
        Boolean (batch, 1, num_queries, S). A padding position attends to itself as well, since a
        row without any key would turn into NaN and spread through the values.
    """
    num_keys = attention_mask.shape[-1]
    query = mx.arange(num_keys - num_queries, num_keys)[:, None]
    key = mx.arange(num_keys)[None]
    allowed = attention_mask.astype(mx.bool_)[:, None, None, :]
    return ((key <= query) & allowed) | (key == query)


def packed_mask(position_ids: mx.array) -> mx.array:
    """Causal attention within each of the texts that stand one after the other in a row.

    Args:
        position_ids: (batch, length); a text begins where they are not one more than before.

    Returns:
        Boolean (batch, 1, length, length).
    """
    begins = position_ids[:, 1:] != position_ids[:, :-1] + 1
    text = mx.cumsum(mx.pad(begins.astype(mx.int32), ((0, 0), (1, 0))), axis=1)
    index = mx.arange(text.shape[1])
    same = text[:, None, :, None] == text[:, None, None]
    return same & (index[:, None] >= index)


def decoder_mask(
    attention_mask: Any,
    shape: tuple[int, int, int, int],
    dtype: mx.Dtype,
    name: str = "attention_mask",
) -> mx.array | AttentionMask:
    """A caller's mask of a decoder as `scaled_dot_product_attention` takes it.

    Args:
        attention_mask: (batch, S), zero at padding; or (batch or 1, heads or 1, L, S), which is
            boolean, true where attention is allowed, or is added to the scores.
        shape: (batch, heads, L, S).
        dtype: of the queries.
        name: of the argument, for a message.

    Raises:
        InputError: it is no such array.
    """
    mask = as_mlx(attention_mask)
    two_axes, (*_, num_queries, num_keys) = (shape[0], shape[3]), shape
    key = mx.arange(num_keys)
    query = key[num_keys - num_queries :, None]
    if isinstance(mask, mx.array) and mask.shape == two_axes:
        mask = mask.astype(mx.bool_)[:, None, None] & (key <= query)
    four = isinstance(mask, mx.array) and mask.ndim == 4
    if not four or any(have not in (1, want) for have, want in zip(mask.shape, shape, strict=True)):
        found = mask.shape if isinstance(mask, mx.array) else type(mask).__name__
        wanted = f"an array {two_axes}, the cached positions included, or {shape}"
        raise InputError(f"{name} is {found}, but must be {wanted}")
    if mask.dtype == mx.bool_:
        seen = mask.any(axis=-1, keepdims=True)
        return AttentionMask(mask | (~seen & (key == query)), seen)
    if mx.issubdtype(mask.dtype, mx.floating):
        return mx.maximum(mask, mx.finfo(dtype).min).astype(dtype)
    raise InputError(f"{name} of 4 axes is {mask.dtype}, but must be boolean or of floats")
