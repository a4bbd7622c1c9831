"""What tokenizers, feature extractors and processors return, and rows of token ids as arrays."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Annotated, Any

import mlx.core as mx

from ..errors import InputError, UnsupportedOptionError
from ..fields import Range, fitted

_Id = Annotated[int, Range(-(2**31), 2**31 - 1)]  # of a size that arrays have
TokenRows = Sequence[Sequence[int]] | mx.array  #: rows of token ids


class BatchEncoding(dict):
    """A dictionary whose items are attributes, too: `inputs.input_ids`."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name} here, but {', '.join(self)}") from None


def check_arrays(return_tensors: str, padding: bool | str, lengths: Sequence[int], what: str):
    """Whether rows of these lengths become the array that a caller asks for.

    Args:
        return_tensors: `"mlx"`; `"pt"` and `"np"` mean MLX's arrays as well, so that examples
            written for transformers run as they stand.
        padding: True or `"longest"`: shorter rows are filled up; False: there are none.
        lengths: of the rows.
        what: the rows are, in the plural.

    Raises:
        InputError: a row is shorter though it may not be.
        UnsupportedOptionError: arrays of another kind, or another padding.
    """
    if return_tensors not in ("mlx", "pt", "np"):
        message = f"return_tensors={return_tensors!r}: there are only MLX arrays; leave it out"
        raise UnsupportedOptionError(message)
    if padding not in (True, False, "longest"):
        raise UnsupportedOptionError(f"padding={padding!r} is neither True nor False")
    if not padding and len(set(lengths)) > 1:
        raise InputError(f"the {what} differ in length: an array of them needs padding")


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
        try:
            names = encoded[0] if encoded else ()
            encoded = {name: [row[name] for row in encoded] for name in names}
        except (TypeError, KeyError) as error:
            raise InputError("what is to be padded are dictionaries with input_ids") from error
    rows = [as_ids(row) for row in encoded.get("input_ids", ())]
    if not rows:
        raise InputError("there is nothing to encode: give at least one text")
    masks = [as_ids(row) for row in encoded.get("attention_mask", ([1] * len(r) for r in rows))]
    longest = max(len(row) for row in rows)

    def filled(row: list[int], value: int) -> list[int]:
        added = [value] * (longest - len(row))
        return added + row if side == "left" else row + added

    ids = mx.array([filled(row, fill) for row in rows], mx.int32)
    mask = mx.array([filled(row, 0) for row in masks], mx.int32)
    return BatchEncoding(input_ids=ids, attention_mask=mask)


def stack_padded(arrays: Sequence[mx.array], fill: float = 0.0) -> tuple[mx.array, mx.array]:
    """(length, size) arrays as one, with `fill` after the shorter ones: (rows, longest, size); and
    a boolean mask of what is not filled up, (rows, longest)."""
    lengths = [len(array) for array in arrays]
    longest = max(lengths)
    padded = [mx.pad(a, [(0, longest - len(a)), (0, 0)], constant_values=fill) for a in arrays]
    return mx.stack(padded), length_mask(lengths)


def length_mask(lengths: list[int]) -> mx.array:
    """What of rows of these lengths is not padding: boolean (rows, longest)."""
    return mx.arange(max(lengths))[None] < mx.array(lengths)[:, None]


def as_ids(ids: Any) -> list:
    """Token ids, one or many or rows of them, from any kind of array or sequence.

    Raises:
        InputError: they are none.
    """
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if isinstance(ids, Real):
        ids = [ids]
    elif isinstance(ids, Iterable) and not isinstance(ids, str | bytes | Mapping):
        ids = list(ids)
    return fitted("ids", ids, list[_Id] | list[list[_Id]])


def as_row(ids: Any) -> list[int]:
    """As `as_ids`, for the ids of a single row."""
    return fitted("ids", as_ids(ids), list[_Id])
