"""What all tokenizers share: calls, padding, decoding of batches, and settings that are saved."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..checkpoint.saving import Saveable
from ..errors import InputError, UnsupportedOptionError
from ..fields import fit_fields, fitted
from .batch import BatchEncoding, TokenRows, as_ids, pad_rows
from .encoding_options import EncodingOptions, check_side
from .special_tokens import SpecialTokens
from .tokenizer_files import FURTHER_TOKENS

_UNBOUNDED = int(1e30)  # a model_max_length, as transformers says that there is none
# settings that stand in other files, or are about the place where they stood
_NOT_SAVED = (
    *("added_tokens_decoder", "chat_template", "add_bos_token", "add_eos_token"),
    *("name_or_path", "auto_map", "tokenizer_file", "special_tokens_map_file"),
)
_SPACES = ("n't", "'m", "'s", "'ve", "'re")
# what one text of a call is, or the two of a pair
Text = str | Sequence[str]


def check_text(text: Any) -> None:
    """Raises `InputError` for what cannot be encoded."""
    if not isinstance(text, str):
        raise InputError(f"only text can be encoded, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"the text has a lone surrogate, {text[error.start]!r}, at position {error.start}"
        raise InputError(f"{what}: it is not valid Unicode") from error


@dataclass(frozen=True)
class SavingOptions:
    """Options of `BaseTokenizer.save_pretrained`."""

    legacy_format: bool | None = None
    filename_prefix: str | None = None
    save_jinja_files: bool = True

    def __post_init__(self):
        fit_fields(self)


class BaseTokenizer(SpecialTokens, Saveable):
    """A subclass names its special tokens, and encodes and decodes one text.

    Args:
        config: the settings of tokenizer_config.json.

    Attributes:
        padding_side: where a batch's shorter rows are filled up: "left" or "right".
        truncation_side: where longer ones are cut.
        model_max_length: tokens that a row is cut to or filled up to where a call does not say.
        model_input_names: what a call returns beside `input_ids`.
        split_special_tokens: whether special tokens in a text are encoded as any part of it.
        name_or_path: where it was read from.
    """

    replaced_files: ClassVar[Sequence[str]] = ("tokenizer*", "chat_template.jinja")
    default_padding_side: ClassVar[str]
    #: whether decoding puts spaces around special tokens
    spaces_between_special_tokens: ClassVar[bool]
    is_fast: ClassVar[bool]
    name_or_path = ""

    def __init__(self, config: Mapping[str, Any]):
        self.config = {name: value for name, value in config.items() if value is not None}
        get = self.config.get
        self.padding_side = get("padding_side", self.default_padding_side)
        self.truncation_side = get("truncation_side", "right")
        self.model_max_length = get("model_max_length", _UNBOUNDED)
        self.model_input_names = get("model_input_names", ["input_ids", "attention_mask"])
        self.clean_up_tokenization_spaces = get("clean_up_tokenization_spaces", False)
        self.split_special_tokens = get("split_special_tokens", False)

    @classmethod
    def check_spaces(cls, spaces_between_special_tokens: bool | None) -> None:
        """Refuse to decode special tokens otherwise than this kind of tokenizer does."""
        found = cls.spaces_between_special_tokens
        if spaces_between_special_tokens not in (None, found):
            asked = f"spaces_between_special_tokens={spaces_between_special_tokens!r}"
            raise UnsupportedOptionError(f"{asked}: here it is always {found}; leave it out")

    def _encode_rows(
        self, rows: Sequence[tuple[Text, Text | None]], options: EncodingOptions
    ) -> BatchEncoding:
        """Encode texts and pairs of them: a batch of lists."""
        raise NotImplementedError

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        raise NotImplementedError

    def _cleans_up(self, asked: bool | None) -> bool:
        """Whether decoding takes spaces before punctuation out of texts."""
        return self.clean_up_tokenization_spaces if asked is None else asked

    def __call__(
        self,
        text: Text | Sequence[Any] | None = None,
        text_pair: Text | Sequence[Any] | None = None,
        text_target: Text | Sequence[Any] | None = None,
        text_pair_target: Text | Sequence[Any] | None = None,
        *,
        max_target_length: int | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Encode a batch.

        Args:
            text: one text or several, each a string, a pair of them, or a list of words.
            text_pair: the second texts, where pairs are encoded.
            text_target, text_pair_target: what a model is to answer, for `labels`.
            max_target_length: as `max_length`, for these.
            tokenizer_kwargs: further options.
            options: see `EncodingOptions`.

        Returns:
            `input_ids` and `attention_mask`, (batch, length), filled up on the `padding_side`, and
            what else the options ask for. Lists where `return_tensors` is None, of one text without
            the batch.

        Raises:
            InputError: there is no text, one is not valid Unicode or none, or rows are to differ in
                length though arrays are asked for; there is no such option, or two do not fit.
        """
        given = {**options, **(tokenizer_kwargs or {})}
        if text_target is None:
            return self._encode(text, text_pair, given)
        longest = given.get("max_length") if max_target_length is None else max_target_length
        target = self._encode(text_target, text_pair_target, {**given, "max_length": longest})
        if text is None:
            return target
        inputs = self._encode(text, text_pair, given)
        inputs["labels"] = target["input_ids"]
        return inputs

    def encode(
        self,
        text: Text | Sequence[Any],
        text_pair: Text | Sequence[Any] | None = None,
        add_special_tokens: bool = True,
        *,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """Token ids alone: of a text a list, unless `return_tensors` asks for an array.

        Args and errors are those of a call.
        """
        arrays = {"return_tensors": return_tensors, "padding": False}
        given = {**arrays, **options, "add_special_tokens": add_special_tokens}
        return self._encode(text, text_pair, given)["input_ids"]

    def encode_plus(
        self,
        text: Text,
        text_pair: Text | None = None,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> BatchEncoding:
        """A call with one text, as it was named before transformers 5."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)

    def batch_encode_plus(
        self,
        batch_text_or_text_pairs: Sequence[Any],
        add_special_tokens: bool = True,
        **options: Any,
    ) -> BatchEncoding:
        """A call with several texts or pairs, as it was named before transformers 5."""
        return self(batch_text_or_text_pairs, add_special_tokens=add_special_tokens, **options)

    def _encode(self, text: Any, pair: Any, given: Mapping[str, Any]) -> BatchEncoding:
        options = EncodingOptions.read(given, self.model_max_length)
        split = options.is_split_into_words
        several = isinstance(text, list | tuple) and (
            not split or (text and isinstance(text[0], list | tuple))
        )
        texts = text if several else [text]
        pairs = pair if several and pair is not None else [pair or None] * len(texts)
        if not isinstance(pairs, list | tuple) or len(pairs) != len(texts):
            raise InputError("text_pair has to have as many texts as text")
        rows = [
            _as_pair(row, split) if p is None else (row, p)
            for row, p in zip(texts, pairs, strict=True)
        ]
        if not rows:
            raise InputError("there is nothing to encode: give at least one text")
        for one in (each for first, *others in rows for each in (first, *filter(None, others))):
            self._check(one, split)
        batch = self._encode_rows(rows, options)
        if options.return_tensors is not None:
            return batch.convert_to_tensors(options.return_tensors)
        if several or "overflow_to_sample_mapping" in batch:
            return batch
        # as in transformers, a length stays a list where the tokenizers library works
        first = {
            n: v[0] if isinstance(v[0], list) or not self.is_fast else v for n, v in batch.items()
        }
        return BatchEncoding(first, batch.encodings)

    def _check(self, text: Any, split: bool) -> None:
        if split and not isinstance(text, list | tuple):
            raise InputError(f"is_split_into_words: a text is a list of words, not {text!r}")
        for part in text if split else [text]:
            check_text(part)

    def _fill(self) -> tuple[int, str]:
        """Id and text of what rows are filled up with. Where no `pad_token` is set, another special
        token stands in: the mask excludes it."""
        tokens = (self.pad_token, self.eos_token, self.bos_token)
        found = ((self._id_of(token), token) for token in tokens if token is not None)
        return next(((i, token) for i, token in found if i is not None), (0, ""))

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = "mlx",
        verbose: bool = True,
    ) -> BatchEncoding:
        """Fill up rows of token ids.

        Args:
            encoded_inputs: `input_ids`, rows or a single one, and what else there is of each; or a
                list of such dictionaries with one row each.
            padding, max_length, pad_to_multiple_of, padding_side: see `EncodingOptions`.
            return_attention_mask: whether to make one where there is none.
            return_tensors: None for lists.
            verbose: nothing is printed whatever it says.

        Raises:
            InputError: there are no rows, or an option has another value.
        """
        given = {
            **{"padding": padding, "max_length": max_length, "padding_side": padding_side},
            **{"pad_to_multiple_of": pad_to_multiple_of, "return_tensors": return_tensors},
        }
        options = EncodingOptions.read({**given, "truncation": False}, self.model_max_length)
        if not isinstance(encoded_inputs, Mapping):
            try:
                names = encoded_inputs[0] if encoded_inputs else ()
                encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in names}
            except (TypeError, KeyError) as error:
                raise InputError("what is to be padded are dictionaries with input_ids") from error
        lists = {name: _as_lists(value) for name, value in encoded_inputs.items()}
        rows = as_ids(lists.get("input_ids", []))
        if not rows:
            raise InputError("there is nothing to pad: give input_ids of at least one text")
        single = not isinstance(rows[0], list | tuple)
        if single:
            lists = {name: [value] for name, value in lists.items()}
        if {len(value) for value in lists.values()} != {len(lists["input_ids"])}:
            raise InputError("what is to be padded differs in its number of rows")
        batch = BatchEncoding(self._padded(lists, options, return_attention_mask))
        if single:
            batch = BatchEncoding({name: rows[0] for name, rows in batch.items()})
        return batch.convert_to_tensors(return_tensors)

    def _padded(
        self, lists: Mapping[str, Any], options: EncodingOptions, mask: bool | None
    ) -> dict[str, list]:
        return pad_rows(
            lists,
            fill=self._fill()[0],
            side=self._side(options),
            length=options.padded_length([len(row) for row in lists["input_ids"]]),
            mask=self._returns("attention_mask", mask),
        )

    def _side(self, options: EncodingOptions) -> str:
        return check_side("padding_side", options.padding_side or self.padding_side)

    def _returns(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        *,
        spaces_between_special_tokens: bool | None = None,
        add_special_tokens: bool | None = None,
    ) -> Any:
        """Text of token ids; of several rows of them, a list of texts.

        Args:
            token_ids: one integer, a row of them, or rows.
            skip_special_tokens: leave these out.
            clean_up_tokenization_spaces: take spaces before punctuation out of the text; by default
                as the settings say. It is not done to the texts of byte-pair encoding, whose spaces
                are their own.
            spaces_between_special_tokens: what is the case anyway.
            add_special_tokens: nothing; examples of IBM's give it, and it is about encoding.

        Raises:
            InputError: they are no ids.
            UnsupportedOptionError: spaces are to be otherwise.
        """
        self.check_spaces(spaces_between_special_tokens)
        skip_special_tokens = fitted("skip_special_tokens", skip_special_tokens, bool)
        clean_up = fitted("clean_up_tokenization_spaces", clean_up_tokenization_spaces, bool | None)
        if isinstance(token_ids, Mapping):
            token_ids = token_ids.get("input_ids")
        ids = as_ids(token_ids)
        rows = ids if ids and isinstance(ids[0], list | tuple) else [ids]
        texts = [self._decode(row, skip_special_tokens) for row in rows]
        if self._cleans_up(clean_up):
            texts = [clean_up_tokenization(text) for text in texts]
        return texts if rows is ids else texts[0]

    def batch_decode(self, sequences: TokenRows, *arguments: Any, **options: Any) -> list[str]:
        """Texts of several rows of token ids; arguments as in `decode`."""
        texts = self.decode(sequences, *arguments, **options)
        return [texts] if isinstance(texts, str) else texts

    def save_pretrained(  # type: ignore[override] # a tuple, as in transformers
        self, save_directory: str | os.PathLike, *arguments: Any, **options: Any
    ) -> tuple[str, ...]:
        """Write to a folder what `from_pretrained` reads, there and in transformers.

        Args:
            save_directory: the folder, which is made if there is none.
            legacy_format: whether to write the files of the vocabulary as well, as transformers did
                before tokenizer.json; by default where there are such.
            filename_prefix: of the files' names.
            save_jinja_files: whether chat templates are files of their own; else they stand in
                tokenizer_config.json.
            push_to_hub: also upload it; see `Saveable`.

        Returns:
            Paths of the files.

        Raises:
            CheckpointError: the folder cannot be written to.
            InputError: there is no such option, or it is of another type.
            UnsupportedOptionError: the tokenizer has no such files.
        """
        names = ("legacy_format", "filename_prefix", "push_to_hub")
        options |= dict(zip(names, arguments, strict=False))
        return tuple(super().save_pretrained(save_directory, **options))

    def _write_files(
        self,
        folder: Path,
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        save_jinja_files: bool = True,
    ) -> None:
        self._save(folder, SavingOptions(legacy_format, filename_prefix, save_jinja_files))

    def _save(self, folder: Path, options: SavingOptions) -> None:
        raise NotImplementedError

    def _write_settings(self, folder: Path, filename_prefix: str | None, **settings: Any) -> None:
        """Write tokenizer_config.json."""
        kept = dict(self.config)
        for name in (*FURTHER_TOKENS, *_NOT_SAVED):
            kept.pop(name, None)
        kept |= self.special_tokens_map
        if self.extra_special_tokens:
            kept[FURTHER_TOKENS[0]] = self.extra_special_tokens
        for name in ("padding_side", "truncation_side", "model_max_length", "model_input_names"):
            kept[name] = getattr(self, name)
        kept["clean_up_tokenization_spaces"] = self.clean_up_tokenization_spaces
        text = json.dumps(kept | settings, indent=2, sort_keys=True, ensure_ascii=False)
        file = folder / f"{file_prefix(filename_prefix)}tokenizer_config.json"
        file.write_text(f"{text}\n", encoding="utf-8")


def file_prefix(filename_prefix: str | None) -> str:
    """What begins the names of saved files.

    Raises:
        InputError: it is no part of a name.
    """
    if not isinstance(filename_prefix, str | None) or "/" in (filename_prefix or ""):
        raise InputError.must_be("filename_prefix", filename_prefix, "part of a file's name")
    return f"{filename_prefix}-" if filename_prefix else ""


def clean_up_tokenization(text: str) -> str:
    """A text without the spaces that are left before punctuation and English contractions."""
    for mark in ".?!,":
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for short in _SPACES:
        text = text.replace(f" {short}", short)
    return text


def _as_pair(row: Any, split: bool) -> tuple[Any, Any]:
    """A text of a batch, or the two that stand there together."""
    parts = (list, tuple) if split else str
    is_pair = (
        isinstance(row, tuple if split else list | tuple)
        and len(row) == 2
        and all(isinstance(part, parts) for part in row)
    )
    return (row[0], row[1]) if is_pair else (row, None)


def _as_lists(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [each.tolist() if hasattr(each, "tolist") else each for each in value]
    return value
