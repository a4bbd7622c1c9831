"""The one way into MLX's fused attention.

On Metal a fused kernel is taken for these shapes and for no other; the rest falls back to an
unfused product silently, so every model here keeps inside them (tests/layers/test_attention.py):

- more than 8 queries: head size 64, 72, 80, 96 or 128, with or without an array mask; causal only
  if there are no more queries than keys;
- up to 8 queries: head size 64, 96 or 128, no more queries than keys, and queries times query
  heads per key head at most 32.

Keys and values are never tiled to the number of query heads.
"""

from typing import NamedTuple

import mlx.core as mx


class Quantized(NamedTuple):
    """Keys or values as `mx.quantize` made them, in groups along the last axis."""

    data: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int


def scaled_dot_product_attention(
    queries: mx.array,
    keys: mx.array | Quantized,
    values: mx.array | Quantized,
    *,
    scale: float,
    mask: mx.array | str | None = None,
) -> mx.array:
    """Softmax attention.

    Args:
        queries: (batch, query heads, L, head_dim).
        keys, values: (batch, key heads, S, head_dim); query heads are a multiple of key heads.
        scale: factor on the scores.
        mask: `None`, `"causal"`, a boolean array (true where attention is allowed) or an additive
            one in the queries' dtype, broadcastable to (batch, query heads, L, S).

    Returns:
        (batch, query heads, L, head_dim).
    """
    if isinstance(keys, Quantized):
        return _quantized_attention(queries, keys, values, scale, mask)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def _quantized_attention(queries, keys: Quantized, values: Quantized, scale, mask) -> mx.array:
    batch, heads, length, _ = queries.shape
    key_heads, num_keys = keys.data.shape[1:3]
    if isinstance(mask, str):
        mask = causal_mask(mx.ones((1, num_keys)), length)

    def multiply(x: mx.array, by: Quantized, transpose: bool) -> mx.array:
        # the query heads of a key head become rows, so that nothing is tiled
        rows = x.reshape(batch, key_heads, heads // key_heads * length, -1)
        product = mx.quantized_matmul(rows, *by[:3], transpose, by.group_size, by.bits)
        return product.reshape(batch, heads, length, -1)

    scores = multiply(queries * scale, keys, True)
    if mask is not None and mask.dtype == mx.bool_:
        scores = mx.where(mask, scores, -mx.inf)
    elif mask is not None:
        scores = scores + mask
    return multiply(mx.softmax(scores, axis=-1, precise=True), values, False)


def attention_weights(
    queries: mx.array, keys: mx.array, *, scale: float, mask: mx.array | str | None = None
) -> mx.array:
    """What each query makes of each key, for those who want to see it: no kernel is fused.

    Args:
        queries, keys, scale: as above, with as many key heads as query heads.
        mask: `None`, `"causal"` or a boolean array.

    Returns:
        (batch, heads, L, S), rows that sum to 1.
    """
    scores = (queries * scale) @ keys.swapaxes(-1, -2)
    if isinstance(mask, str):
        mask = causal_mask(mx.ones((1, scores.shape[-1])), scores.shape[-2])
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    return mx.softmax(scores, axis=-1, precise=True)


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
