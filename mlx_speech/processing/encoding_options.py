"""What a call of a tokenizer may ask for, as in transformers, and the lengths that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, Self

from ..errors import InputError
from ..fields import Range, fit_fields
from .batch import check_tensors

_UNBOUNDED = 10**20  # a model_max_length above it says that there is none
_Length = Annotated[int, Range(1, 2**31 - 1)]


@dataclass(frozen=True)
class EncodingOptions:
    """Options of a call; as fields, what they come to.

    Attributes:
        add_special_tokens: also those that the tokenizer puts around each text. A prompt from
            `apply_chat_template` has them already.
        padding: True or `"longest"`: shorter rows are filled up to the longest; `"max_length"`: all
            to `max_length`; False or `"do_not_pad"`: none is. By default True where arrays are
            made, which need it, and False where lists are.
        truncation: True or `"longest_first"`: longer rows are cut to `max_length`, of a pair the
            longer text first; `"only_first"`, `"only_second"`: only this text of a pair; False or
            `"do_not_truncate"`: none is. Without this and `padding`, `max_length` alone cuts.
        max_length: tokens of a row; by default as many as the tokenizer's `model_max_length`.
        stride: tokens that a row and what was cut off have in common.
        is_split_into_words: texts are lists of words.
        pad_to_multiple_of: lengths are filled up to a multiple of this.
        padding_side: where rows are filled up, if not on that of the tokenizer.
        return_tensors: None for lists of integers; see `check_tensors` for arrays.
        return_token_type_ids, return_attention_mask, return_special_tokens_mask,
            return_offsets_mapping, return_length: what else to return; the first two are by default
            what the tokenizer's `model_input_names` say.
        return_overflowing_tokens: also what was cut off; with the tokenizers library as further
            rows, and as `overflow_to_sample_mapping` the numbers of their texts.
        split_special_tokens: encode special tokens in a text as any other part of it; by default as
            the tokenizer's settings say.
        verbose: nothing is printed whatever it says.
    """

    add_special_tokens: bool = True
    padding: bool | Literal["longest", "max_length", "do_not_pad"] | None = None
    truncation: (
        bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"] | None
    ) = None
    max_length: _Length | None = None
    stride: Annotated[int, Range(0, 2**31 - 1)] = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: _Length | None = None
    padding_side: Literal["left", "right"] | None = None
    return_tensors: Any = "mlx"
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    split_special_tokens: bool | None = None
    verbose: bool = True

    def __post_init__(self):
        fit_fields(self)
        if self.return_tensors is not None:
            check_tensors(self.return_tensors)

    @classmethod
    def read(cls, options: Mapping[str, Any], model_max_length: int) -> Self:
        """Options as a caller gives them: `padding` becomes `"longest"`, `"max_length"` or False,
        `truncation` the name of a way to cut or False, and `max_length` is set where needed. None
        stands for the default, but of `return_tensors`.

        Raises:
            InputError: there is no such option, one is of another type, or two do not fit together.
            UnsupportedOptionError: arrays of another kind.
        """
        names = {field.name for field in fields(cls)}
        if unknown := ", ".join(sorted(options.keys() - names)):
            known = ", ".join(sorted(names))
            raise InputError(f"a call of this tokenizer has no option {unknown}, but {known}")
        said = {n: v for n, v in options.items() if v is not None or n == "return_tensors"}
        asked = cls(**said)
        padding: Any = asked.padding
        truncation: Any = asked.truncation
        if truncation is None and not padding:
            truncation = asked.max_length is not None
        padding = asked.return_tensors is not None if padding is None else padding
        padding = {True: "longest", "do_not_pad": False}.get(padding, padding)
        truncation = False if truncation is None else truncation
        truncation = {True: "longest_first", "do_not_truncate": False}.get(truncation, truncation)
        length = asked.max_length
        if length is None and model_max_length <= _UNBOUNDED:
            length = model_max_length
        if length is None:  # there is nothing to fill up or to cut to
            padding = False if padding == "max_length" else padding
            truncation = False
        multiple = asked.pad_to_multiple_of
        if padding and truncation and multiple and length is not None and length % multiple:
            rule = f"pad_to_multiple_of={multiple} does not divide max_length={length}"
            raise InputError(f"{rule}: rows cannot be cut to one and filled up to the other")
        return replace(asked, padding=padding, truncation=truncation, max_length=length)

    def padded_length(self, lengths: Sequence[int]) -> int | None:
        """That of rows of these lengths once they are filled up; None where they stay."""
        if not self.padding:
            return None
        length = self.max_length if self.padding == "max_length" else max(lengths)
        multiple = self.pad_to_multiple_of or 1
        return -(-(length or 0) // multiple) * multiple


def check_side(name: str, side: Any) -> str:
    """Refuse what is no side.

    Raises:
        InputError: it is neither.
    """
    if side not in ("left", "right"):
        raise InputError(f"{name} is {side!r}, neither 'left' nor 'right'")
    return side


def cut(
    first: list[int], second: list[int] | None, excess: int, options: EncodingOptions, side: str
) -> tuple[list[int], list[int] | None, list[int]]:
    """Take ids away from a text or a pair; also gives what was cut off, but for `longest_first` of
    a pair, where it would be of both. It is what tokenizers without the tokenizers library need.

    Args:
        excess: how many to take away; none where it is below one.
        options: `truncation`, which says of which, and `stride`.
        side: that they are taken from, `"left"` or `"right"`.

    Raises:
        InputError: there are not so many in the text that may be cut.
    """
    if excess <= 0 or not options.truncation:
        return first, second, []
    from_first, from_second = excess, 0
    if options.truncation == "only_second":
        from_first, from_second = 0, excess
    elif options.truncation == "longest_first" and second:
        apart = min(abs(len(first) - len(second)), excess)  # first the longer to the other's length
        half = (excess - apart) // 2
        from_first = half + (apart if len(first) > len(second) else 0)
        from_second = excess - from_first
    if from_first > len(first) or from_second > len(second or []):
        rule = "the text that may be cut is shorter; allow a greater max_length"
        raise InputError(
            f"truncation={options.truncation!r} has to cut {excess} tokens, but {rule}"
        )

    def parted(ids: list[int], count: int) -> tuple[list[int], list[int]]:
        shared = count + options.stride
        if side == "left":
            return ids[count:], ids[:shared] if count else []
        return ids[: len(ids) - count], ids[-shared:] if count else []

    first, cut_first = parted(first, from_first)
    if second is None:
        return first, None, cut_first
    second, cut_second = parted(second, from_second)
    both = options.truncation == "longest_first"
    return first, second, [] if both else cut_first + cut_second
