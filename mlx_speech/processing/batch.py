"""Rows of token ids -> arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..encoding import BatchEncoding
from ..errors import InputError


def pad_rows(
    encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, fill: int, side: str
) -> BatchEncoding:
    """Fill up rows of token ids to the longest.

    Args:
        encoded: `input_ids`, a list of rows, and optionally their `attention_mask`; or a list of
            such dictionaries with one row each.
        fill: id for the places added.
        side: where to add them, `"left"` or `"right"`.

    Returns:
        `input_ids` and `attention_mask`, (batch, length).

    Raises:
        InputError: there are no rows, or no such side.
    """
    if side not in ("left", "right"):
        raise InputError(f"padding_side is {side!r}, neither 'left' nor 'right'")
    if not isinstance(encoded, Mapping):
        encoded = {name: [row[name] for row in encoded] for name in (encoded[0] if encoded else ())}
    rows = [as_ids(row) for row in encoded.get("input_ids", ())]
    if not rows:
        raise InputError("there is nothing to encode: give at least one text")
    masks = [as_ids(row) for row in encoded.get("attention_mask", ([1] * len(r) for r in rows))]
    longest = max(len(row) for row in rows)

    def filled(row: list[int], value: int) -> list[int]:
        added = [value] * (longest - len(row))
        return added + row if side == "left" else row + added

    return BatchEncoding(
        input_ids=mx.array([filled(row, fill) for row in rows], mx.int32),
        attention_mask=mx.array([filled(row, 0) for row in masks], mx.int32),
    )


def as_ids(ids: Any) -> list:
    """Token ids, one or many or rows of them, from any kind of array or sequence."""
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if isinstance(ids, int):
        return [ids]
    return [i.tolist() if hasattr(i, "tolist") else i for i in ids]
