"""What tokenizers, feature extractors and processors return, and rows of token ids as arrays."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Annotated, Any, NamedTuple, Self

import mlx.core as mx
from tokenizers import Encoding

from ..checkpoint.options import DTYPES, floating_dtype, is_device
from ..errors import InputError, UnsupportedOptionError
from ..fields import Range, fitted

_Id = Annotated[int, Range(-(2**31), 2**31 - 1)]  # of a size that arrays have
TokenRows = Sequence[Sequence[int]] | mx.array  #: rows of token ids


class CharSpan(NamedTuple):
    """Characters of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens of a row."""

    start: int
    end: int


def _row_items(name: str) -> Any:
    def items(self, batch_index: int = 0) -> list:
        return getattr(self._encoding(batch_index), name)

    items.__doc__ = f"`{name}` of the encoding of a row, one a token."
    return items


def _lookup(name: str, span: type | None = None) -> Any:
    unit = name.partition("_")[0]

    def find(self, batch_or_index: int = 0, index: int | None = None, *args: Any, **options: Any):
        index = options.pop(f"{unit}_index", index)
        row = options.pop("batch_index", options.pop(f"batch_or_{unit}_index", batch_or_index))
        row, at = (0, row) if index is None else (row, index)
        try:
            found = getattr(self._encoding(row), name)(at, *args, **options)
        except (OverflowError, TypeError) as error:
            raise InputError(f"{name}({row}, {at}): {error}") from error
        return found if found is None or span is None else span(*found)

    find.__doc__ = (
        f"`{name}` of the tokenizers library, for the {unit} of an index; before it the number of "
        "the row, where there are several. Words and characters may be those of the second of a "
        "pair: `sequence_index=1`."
    )
    return find


class BatchEncoding(dict):
    """A dictionary whose items are attributes, too: `inputs.input_ids`.

    Args:
        data: its items.
        encoding: what the tokenizers library made of each row, if it did: it maps tokens to words
            and characters. `batch[0]` is that of the first row.
        tensor_type, prepend_batch_axis: as in `convert_to_tensors`.
    """

    encodings: list[Encoding] | None = None

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Encoding | list[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        **items: Any,
    ):
        super().__init__(data or {}, **items)
        if encoding is not None:
            self.encodings = encoding if isinstance(encoding, list) else [encoding]
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name} here, but {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        if self.encodings is not None:
            return self.encodings[key]
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.items()}
        raise KeyError(key)

    @property
    def data(self) -> Self:
        """The items."""
        return self

    @property
    def is_fast(self) -> bool:
        """Whether the rows were made by the tokenizers library."""
        return self.encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """1 for texts, 2 for pairs of them; None where the rows are of no tokenizer."""
        return self.encodings[0].n_sequences if self.encodings else None

    def _encoding(self, row: int) -> Encoding:
        if self.encodings is None:
            raise UnsupportedOptionError(
                "what was encoded without the tokenizers library, or is "
                "no text, has no words or characters: a Tokenizer's batches have"
            )
        try:
            return self.encodings[row]
        except (IndexError, TypeError) as error:
            raise InputError(
                f"there is no row {row!r} in a batch of {len(self.encodings)}"
            ) from error

    tokens, word_ids, sequence_ids = map(_row_items, ("tokens", "word_ids", "sequence_ids"))
    token_to_sequence, token_to_word = map(_lookup, ("token_to_sequence", "token_to_word"))
    char_to_token, char_to_word = map(_lookup, ("char_to_token", "char_to_word"))
    token_to_chars, word_to_chars = (_lookup(f"{n}_to_chars", CharSpan) for n in ("token", "word"))
    word_to_tokens = _lookup("word_to_tokens", TokenSpan)

    def convert_to_tensors(
        self, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> Self:
        """Make arrays of lists, here.

        Args:
            tensor_type: None leaves them as they are; others as in `check_tensors`.
            prepend_batch_axis: for items that are those of one row.

        Raises:
            InputError: rows differ in length.
        """
        if tensor_type is None:
            return self
        check_tensors(tensor_type)
        for name, value in self.items():
            value = [value] if prepend_batch_axis else value
            if not isinstance(value, mx.array):
                self[name] = _as_array(name, value)
        return self

    def to(self, *targets: Any, dtype: Any = None, **others: Any) -> Self:
        """Cast what is floating-point, here; devices mean nothing, as memory is unified.

        Args:
            targets: devices, and a floating type, or its name.
            dtype: a floating type.
            others: `device` and `non_blocking`.

        Raises:
            UnsupportedOptionError: one is no device, and no type that models compute in.
        """
        if unknown := others.keys() - {"device", "non_blocking"}:
            raise InputError(f"to() has no option {', '.join(sorted(unknown))}, but device, dtype")
        for value in (*targets, dtype, others.get("device")):
            chosen = floating_dtype(value)
            if chosen is not None:
                for name, array in self.items():
                    if isinstance(array, mx.array) and mx.issubdtype(array.dtype, mx.floating):
                        self[name] = array.astype(chosen)
            elif value is not None and not is_device(value):
                known = ", ".join(DTYPES)
                raise UnsupportedOptionError(f"a batch can be cast to {known}, not to {value!r}")
        return self


BatchFeature = BatchEncoding  #: by the name that feature extractors have for it in transformers


def _as_array(name: str, value: Any) -> mx.array:
    try:
        array = mx.array(value)
    except (TypeError, ValueError, IndexError) as error:
        rule = "differ in length: an array of them needs padding"
        raise InputError(f"{name} are no numbers, or {rule}") from error
    return array if array.size else array.astype(mx.int32)


def check_tensors(return_tensors: str) -> None:
    """Refuse arrays that there are not.

    Args:
        return_tensors: `"mlx"`; `"pt"` and `"np"` mean MLX's arrays as well, so that examples
            written for transformers run as they stand.

    Raises:
        UnsupportedOptionError: another kind.
    """
    if return_tensors not in ("mlx", "pt", "np"):
        message = f"return_tensors={return_tensors!r}: there are only MLX arrays; leave it out"
        raise UnsupportedOptionError(message)


def pad_rows(
    encoded: Mapping[str, Any], *, fill: int, side: str, length: int | None, mask: bool
) -> dict[str, list[list[int]]]:
    """Fill up rows of token ids, and what goes with them.

    Args:
        encoded: `input_ids`, a list of rows, and what else there is of each row.
        fill: id for the places added.
        side: where to add them, `"left"` or `"right"`.
        length: that rows are to have at least, if any.
        mask: whether to make an `attention_mask` where there is none.
    """
    items = {name: list(rows) for name, rows in encoded.items()}
    if mask and "attention_mask" not in items:
        items["attention_mask"] = [[1] * len(row) for row in items["input_ids"]]
    missing = [(length or 0) - len(row) for row in items["input_ids"]]
    fills = {"input_ids": fill, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
    for name in items.keys() & fills.keys():
        added = [[fills[name]] * count for count in missing]  # of none, where that is below zero
        rows = zip(added, items[name], strict=True)
        items[name] = [a + list(row) if side == "left" else list(row) + a for a, row in rows]
    return items


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
    try:
        return fitted("ids", ids, list[_Id] | list[list[_Id]])
    except InputError:  # whose rule would be a paragraph
        raise InputError.must_be("ids", ids, "an integer, a row of them, or rows") from None


def as_row(ids: Any) -> list[int]:
    """As `as_ids`, for the ids of a single row."""
    row = as_ids(ids)
    if row and isinstance(row[0], list | tuple):
        raise InputError.must_be("ids", ids, "a single row of integers")
    return row
