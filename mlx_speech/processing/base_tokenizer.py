"""What all tokenizers share: ids of the special tokens, batches of texts and of ids."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from ..errors import InputError
from .batch import BatchEncoding, TokenRows, as_ids, check_arrays, pad_rows


def _token_id(name: str) -> property:
    return property(
        lambda self: self._id_of(getattr(self, name)),
        doc=f"Id of the {name.replace('_', ' ')}, or None.",
    )


def check_text(text: Any, surrogate: str) -> None:
    """Raises `InputError` for what cannot be encoded; `surrogate` is what to say of half of a
    surrogate pair, with places for it and for where it is."""
    if not isinstance(text, str):
        raise InputError(f"only text can be encoded, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(surrogate.format(repr(text[error.start]), error.start)) from error


class BaseTokenizer:
    """A subclass names its special tokens, and encodes and decodes one text."""

    #: where a batch's shorter rows are filled up: "left" or "right"
    padding_side: str
    encode: Callable[..., list[int]]
    decode: Callable[..., Any]
    _id_of: Callable[[Any], int | None]

    bos_token_id = _token_id("bos_token")
    eos_token_id = _token_id("eos_token")
    unk_token_id = _token_id("unk_token")
    pad_token_id = _token_id("pad_token")

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = True,
        return_tensors: str = "mlx",
        **options: Any,
    ) -> BatchEncoding:
        """Encode a batch.

        Args:
            text: one text or several.
            padding, return_tensors: see `check_arrays`.
            options: of `encode`.

        Returns:
            `input_ids` and `attention_mask`, (batch, length), filled up on the `padding_side`.

        Raises:
            InputError: there is no text, one is as in `encode`, or one is shorter though it may
                not be; there is no such option.
        """
        known = signature(self.encode).parameters.keys() - {"text"}
        if unknown := ", ".join(sorted(options.keys() - known)):
            names = ", ".join(sorted({"padding", "return_tensors", *known}))
            raise InputError(f"a call of this tokenizer has no option {unknown}, but {names}")
        texts = text if isinstance(text, list | tuple) else [text]
        rows = [self.encode(t, **options) for t in texts]
        check_arrays(return_tensors, padding, [len(row) for row in rows], "texts")
        return self.pad({"input_ids": rows})

    def pad(self, encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> BatchEncoding:
        """Fill up rows of token ids to the longest; see `pad_rows`.

        Where no `pad_token` is set, another special token stands in: the mask excludes it.
        """
        candidates = (self.pad_token_id, self.eos_token_id, self.bos_token_id, 0)
        fill = next(token for token in candidates if token is not None)
        return pad_rows(encoded_inputs, fill=fill, side=self.padding_side)

    def convert_tokens_to_ids(self, tokens: str | Sequence[Any]) -> Any:
        """Id of a token, or ids of several, or of rows of them; the unknown token's for what is
        none."""
        if not isinstance(tokens, str):
            if not isinstance(tokens, list | tuple):
                raise InputError(f"a token is text, not {type(tokens).__name__}")
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._id_of(tokens)
        return self.unk_token_id if found is None else found

    def batch_decode(self, sequences: TokenRows, **options: Any) -> list[str]:
        """Texts of several rows of token ids; options as in `decode`."""
        return [self.decode(row, **options) for row in as_ids(sequences)]
