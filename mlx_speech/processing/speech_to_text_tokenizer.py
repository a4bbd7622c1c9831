"""Speech2Text's tokenizer: text to ids and back."""

import json
import os
import re
import warnings
from collections.abc import Sequence
from inspect import signature
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import AddedToken

from ..checkpoint.hub import resolve_checkpoint, take_hub_options
from ..checkpoint.saving import folder_path, writing
from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..fields import fitted
from ..files import replacing_all
from .base_tokenizer import BaseTokenizer, SavingOptions, Text, check_text, file_prefix
from .batch import BatchEncoding, as_ids
from .encoding_options import EncodingOptions, check_side, cut
from .speech_to_text_files import (
    SPM_FILE,
    VOCAB_FILE,
    read_added,
    read_spm,
    read_tokens,
    read_vocab,
)
from .tokenizer_files import (
    FURTHER_TOKENS,
    added_token,
    content_of,
    further_tokens,
    named_tokens,
    plain_settings,
    read_tokenizer_config,
)

#: languages by the checkpoints' `lang_codes`
LANGUAGES = {"mustc": ["pt", "fr", "ru", "nl", "ro", "it", "es", "de"]}
_OPTIONS = {
    *("sep_token", "cls_token", "mask_token", FURTHER_TOKENS[0], "added_tokens_decoder"),
    *("padding_side", "truncation_side", "model_max_length", "model_input_names"),
    *("clean_up_tokenization_spaces", "spaces_between_special_tokens", "split_special_tokens"),
}


class Speech2TextTokenizer(BaseTokenizer):
    """SentencePiece cuts text into pieces, vocab.json gives them their ids.

    The arguments are the fields of tokenizer_config.json.

    Args:
        vocab_file, spm_file: paths of vocab.json and of the SentencePiece model.
        bos_token, eos_token, pad_token, unk_token: special tokens. As text they have to be in the
            vocabulary; an `AddedToken` may be new.
        do_upper_case: whether decoded text becomes upper case.
        do_lower_case: whether text becomes lower case before it is encoded.
        tgt_lang: language whose token begins encoded text; the first one if not given. Without
            `lang_codes` it means nothing.
        lang_codes: name of the languages that a multilingual checkpoint translates to.
        additional_special_tokens: further ones; the new among them get the next ids.
        sp_model_kwargs: options of the SentencePieceProcessor.
        options: settings that all tokenizers have: `padding_side`, `truncation_side`,
            `model_max_length`, `model_input_names`, `sep_token` and so on.

    Attributes:
        lang_code_to_id: ids of the target languages' tokens, to begin an answer with; empty in
            checkpoints of one language. SentencePiece's own ids, as in the reference, with a
            warning where vocab.json has others.
        prefix_tokens: what begins encoded text.

    Raises:
        CheckpointError: a file is missing or damaged, or lacks a special token; or `lang_codes` is
            unknown.
        InputError: there is no such option, or it is of another type.
        UnsupportedOptionError: `tgt_lang` is not among the languages.
    """

    replaced_files: ClassVar[Sequence[str]] = (*BaseTokenizer.replaced_files, VOCAB_FILE, SPM_FILE)
    default_padding_side = "right"
    spaces_between_special_tokens = True
    is_fast = False

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        spm_file: str | os.PathLike,
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken = "<pad>",
        unk_token: str | AddedToken = "<unk>",
        do_upper_case: bool = False,
        do_lower_case: bool = False,
        tgt_lang: str | None = None,
        lang_codes: str | None = None,
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        sp_model_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ):
        if unknown := ", ".join(sorted(options.keys() - _OPTIONS)):
            known = ", ".join(sorted(_known_options()))
            raise InputError(f"a tokenizer has no option {unknown}, but {known}")
        self.vocab_file = fitted("vocab_file", vocab_file, Path | str)
        self.spm_file = fitted("spm_file", spm_file, Path | str)
        if lang_codes not in (None, *LANGUAGES):
            known = ", ".join(LANGUAGES)
            raise CheckpointError(f"lang_codes {lang_codes!r} is not known; known are {known}")
        self.lang_codes, self.sp_model_kwargs = lang_codes, sp_model_kwargs or {}
        self.langs = [] if lang_codes is None else LANGUAGES[lang_codes]
        self.lang_tokens = [f"<lang:{lang}>" for lang in self.langs]
        self.check_spaces(options.pop("spaces_between_special_tokens", None))
        further = options.pop(FURTHER_TOKENS[0], None) or additional_special_tokens
        further = fitted(FURTHER_TOKENS[1], further or [], list[Any])
        named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token}
        named |= {"pad_token": pad_token}
        settings = {
            **options,
            **named,
            FURTHER_TOKENS[0]: [t for t in self.lang_tokens if t not in further] + list(further),
            **{"do_upper_case": do_upper_case, "do_lower_case": do_lower_case},
            **{"lang_codes": lang_codes, "sp_model_kwargs": self.sp_model_kwargs},
        }
        super().__init__(plain_settings(settings))
        self.do_upper_case, self.do_lower_case = do_upper_case, do_lower_case
        self.encoder = read_vocab(Path(vocab_file))
        self.decoder = {index: piece for piece, index in self.encoder.items()}
        self.sp_model = read_spm(Path(spm_file), self.sp_model_kwargs)
        self._added = read_added(self.config.get("added_tokens_decoder", {}), vocab_file)
        self._added_ids = {token.content: index for index, token in self._added.items()}
        for token in named.values():
            if isinstance(token, str) and self._id_of(token) is None:
                lacks = f"lacks the special token {token}"
                raise CheckpointError(f"{vocab_file}: {lacks}; to add it give an AddedToken")
        special = (*named_tokens(self.config).values(), *further_tokens(self.config))
        tokens = read_tokens(special, vocab_file)
        self._add([token for token in tokens if token.content not in self._added_ids], True)
        self._forget_tokens()
        ids = [self.sp_model.piece_to_id(token) for token in self.lang_tokens]
        self.lang_code_to_id = dict(zip(self.langs, ids, strict=True))
        rows = zip(self.langs, ids, map(self.encoder.get, self.lang_tokens), strict=True)
        differing = [f"{lang} is {spm} and {vocab}" for lang, spm, vocab in rows if spm != vocab]
        if differing:
            what = "SentencePiece and the vocabulary differ about target languages"
            rule = "SentencePiece's ids are used, as in transformers"
            warnings.warn(f"{vocab_file}: {what}, {', '.join(differing)}; {rule}", stacklevel=2)
        self._tgt_lang: str | None = None
        self.prefix_tokens: list[int] = []
        if self.langs:
            self.tgt_lang = tgt_lang if tgt_lang is not None else self.langs[0]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **options: Any) -> Self:
        """Read the tokenizer of a local folder or a Hugging Face repository.

        Args:
            options: those of `HubOptions`, such as `revision`, and arguments of the class that
                replace the checkpoint's, e.g. `tgt_lang`.

        Raises:
            CheckpointError: a file is missing or malformed.
            InputError: there is no such option, or it is of another type.
        """
        hub = take_hub_options(options)
        options = plain_settings(options)
        folder = resolve_checkpoint(pretrained_model_name_or_path, weights=False, **hub)
        config = read_tokenizer_config(folder)
        known = _known_options()
        arguments = {name: config[name] for name in known if config.get(name) is not None}
        tokens = {name: content_of(token) for name, token in named_tokens(config).items()}
        arguments |= {name: tokens[name] for name in arguments.keys() & tokens.keys()}
        arguments.pop(FURTHER_TOKENS[1], None)
        arguments[FURTHER_TOKENS[0]] = further_tokens(config)
        arguments.pop("spaces_between_special_tokens", None)  # it is as it is, whatever a file says
        arguments |= options
        given = {name: _as_given(value) for name, value in arguments.items()}
        tokenizer = cls(folder / VOCAB_FILE, folder / SPM_FILE, **given)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer

    def __len__(self) -> int:
        """Tokens in all, with those added to the vocabulary."""
        return len(self.encoder.keys() | self._added_ids.keys())

    @property
    def vocab_size(self) -> int:
        """Number of entries of vocab.json."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens."""
        return self.encoder | self._added_ids

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """By id, the tokens that are found in a text before it is cut into pieces."""
        return dict(sorted(self._added.items()))

    @property
    def tgt_lang(self) -> str | None:
        """Language whose token begins encoded text; None in checkpoints of one language."""
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, language: str) -> None:
        self.set_tgt_lang_special_tokens(language)
        self._tgt_lang = language

    def set_tgt_lang_special_tokens(self, tgt_lang: str) -> None:
        """Let encoded text begin with the token of a language.

        Raises:
            UnsupportedOptionError: the checkpoint does not know the language.
        """
        self.prefix_tokens = [self.language_id(tgt_lang)]

    def language_id(self, language: str) -> int:
        """Id of a target language's token, to begin an answer with.

        Raises:
            UnsupportedOptionError: the checkpoint does not know the language.
        """
        if isinstance(language, str) and language in self.lang_code_to_id:
            return self.lang_code_to_id[language]
        if not self.langs:
            able = "the multilingual ones can, such as facebook/s2t-medium-mustc-multilingual-st"
            message = f"this checkpoint writes one language and cannot be asked for {language!r}"
            raise UnsupportedOptionError(f"{message}; {able}")
        message = f"this checkpoint does not translate to {language!r}, but to "
        raise UnsupportedOptionError(message + ", ".join(self.langs))

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._added_ids.get(token, self.encoder.get(token))

    def _token_of(self, index: int) -> str:
        token = self._added.get(index)
        return self.decoder.get(index, self._unknown) if token is None else token.content

    def _layout(self, pair: bool) -> list[tuple[int | str, int]]:
        end = [] if self.eos_token_id is None else [self.eos_token_id]
        return [(part, 0) for part in (*self.prefix_tokens, "A", *("B" if pair else ""), *end)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """0 for each token of a text with those around it, 1 for what a second text adds."""
        alone = len(self.build_inputs_with_special_tokens(token_ids_0))
        return [0] * alone + [1] * len(token_ids_1 or [])

    def _add(self, tokens: list[str | AddedToken], special: bool) -> int:
        before = len(self)
        for token in tokens:
            if isinstance(token, str) and token in self._added_ids and not special:
                continue
            state = {"normalized": not special} if isinstance(token, str) else token.__getstate__()
            state |= {"content": str(token), "special": special or state.get("special", False)}
            index = self._id_of(state["content"])
            if index is None:
                index = 1 + max(*self.decoder, *self._added, -1)
            self._added[index] = AddedToken(**state)
            self._added_ids[state["content"]] = index
        return len(self) - before

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """As in other tokenizers; what is special is among the `extra_special_tokens` as well."""
        added = super().add_tokens(new_tokens, special_tokens)
        known = self.all_special_tokens
        special = (token.content for token in self._added.values() if token.special)
        further = [token for token in special if token not in known]
        self.config[FURTHER_TOKENS[0]] = [*further_tokens(self.config), *further]
        self._forget_tokens()
        return added

    def _forget_tokens(self) -> None:
        # what decoding a token at a time and cutting a text would look up again and again
        self._special = frozenset(self.all_special_tokens)
        self._unknown = self.unk_token or ""
        self._special_ids = frozenset(self.all_special_ids)
        longest_first = sorted(self._added.values(), key=lambda t: len(t.content), reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(_pattern, longest_first)) or '(?!)'})")

    def tokenize(self, text: str, *, split_special_tokens: bool | None = None) -> list[str]:
        """Pieces of a text; added tokens in it stay whole.

        Args:
            split_special_tokens: whether they do not; by default as the settings say.

        Raises:
            InputError: not a text, or not valid Unicode.
        """
        check_text(text)
        split = split_special_tokens
        split = self.split_special_tokens if split is None else split
        pieces: list[str] = []
        for part in [text] if split else self._pattern.split(text):
            token = part if part in self._added_ids else part.strip()
            if token in self._added_ids and not split:
                pieces.append(token)
            else:
                text = part.lower() if self.do_lower_case else part
                pieces += self.sp_model.encode(text, out_type=str)
        return pieces

    def _ids(self, text: Text, split_special_tokens: bool | None) -> list[int]:
        words = [text] if isinstance(text, str) else text
        options = {"split_special_tokens": split_special_tokens}
        pieces = (piece for word in words for piece in self.tokenize(word, **options))
        return self.convert_tokens_to_ids(list(pieces))

    def _encode_rows(
        self, rows: Sequence[tuple[Text, Text | None]], options: EncodingOptions
    ) -> BatchEncoding:
        if options.return_offsets_mapping:
            what = "return_offsets_mapping: this tokenizer does not know where its pieces stood"
            raise UnsupportedOptionError(f"{what}; leave it out")
        split = options.split_special_tokens
        made = [
            self._prepared(
                self._ids(first, split),
                None if second is None else self._ids(second, split),
                options,
            )
            for first, second in rows
        ]
        lists = {name: [each[name] for each in made] for name in made[0]}
        return BatchEncoding(self._padded(lists, options, options.return_attention_mask))

    def _prepared(
        self, first: list[int], second: list[int] | None, options: EncodingOptions
    ) -> dict[str, Any]:
        """A row: cut, with the tokens around it, and not yet filled up."""
        special = options.add_special_tokens
        length = len(first) + len(second or [])
        length += self.num_special_tokens_to_add(second is not None) if special else 0
        excess = length - (options.max_length or length)
        overflowing = options.return_overflowing_tokens and options.return_tensors is None
        if overflowing and options.truncation == "longest_first" and second is not None:
            rule = "truncation has to be 'only_first' or 'only_second'"
            raise InputError(f"return_overflowing_tokens: of a pair {rule}")
        side = check_side("truncation_side", self.truncation_side)
        first, second, overflow = cut(first, second, excess, options, side)
        ids = (
            self.build_inputs_with_special_tokens(first, second)
            if special
            else first + (second or [])
        )
        row: dict[str, Any] = {"input_ids": ids}
        if self._returns("token_type_ids", options.return_token_type_ids):
            types = self.create_token_type_ids_from_sequences(first, second)
            row["token_type_ids"] = types if special else [0] * len(ids)
        if options.return_special_tokens_mask:
            mask = self.get_special_tokens_mask(first, second)
            row["special_tokens_mask"] = mask if special else [0] * len(ids)
        if overflowing:
            row["overflowing_tokens"] = overflow
            row["num_truncated_tokens"] = max(excess, 0) if options.truncation else 0
        if options.return_length:
            row["length"] = len(ids)
        return row

    def prepare_for_model(
        self,
        ids: Sequence[int],
        pair_ids: Sequence[int] | None = None,
        *,
        return_tensors: str | None = None,
        prepend_batch_axis: bool = False,
        **options: Any,
    ) -> BatchEncoding:
        """A row of ids as a call makes it of a text: cut, with the tokens around it, filled up.

        Args:
            ids, pair_ids: those of a text, and of the second of a pair.
            return_tensors: None for lists; see `check_tensors` for arrays.
            prepend_batch_axis: for arrays: (1, length) instead of (length,).
            options: see `EncodingOptions`.
        """
        given = {"padding": False, **options, "return_tensors": return_tensors}
        asked = EncodingOptions.read(given, self.model_max_length)
        first, second = (None if row is None else as_ids(row) for row in (ids, pair_ids))
        row = self._prepared(first or [], second, asked)
        lists = {name: [value] for name, value in row.items()}
        lists = self._padded(lists, asked, asked.return_attention_mask)
        items = {name: value[0] for name, value in lists.items()}
        return BatchEncoding(items, None, return_tensors, prepend_batch_axis)

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Text of pieces and special tokens; a space follows each of the latter."""
        return self._joined(fitted("tokens", tokens, list[str]))

    def _joined(self, tokens: Sequence[str]) -> str:
        text = ""
        for special, group in groupby(tokens, self._special.__contains__):
            if special:
                text += "".join(f"{token} " for token in group)
            else:
                words = self.sp_model.decode(list(group))
                text += words.upper() if self.do_upper_case else words
        return text.strip()

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        skipped = self._special_ids if skip_special_tokens else ()
        return self._joined([self._token_of(i) for i in ids if i not in skipped])

    def save_vocabulary(
        self, save_directory: str | os.PathLike, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.json and the SentencePiece model to a folder that there is.

        Returns:
            Paths of the files.

        Raises:
            CheckpointError: the folder cannot be written to.
            InputError: it is no path.
        """
        folder, prefix = folder_path(save_directory), file_prefix(filename_prefix)
        vocab, model = folder / f"{prefix}{VOCAB_FILE}", folder / f"{prefix}{SPM_FILE}"
        with writing(folder), replacing_all([vocab, model]) as (new_vocab, new_model):
            new_vocab.write_text(json.dumps(self.encoder, indent=2) + "\n", encoding="utf-8")
            new_model.write_bytes(self.sp_model.serialized_model_proto())
        return str(vocab), str(model)

    def _save(self, folder: Path, options: SavingOptions) -> None:
        if options.legacy_format is False:
            what = "legacy_format=False: this tokenizer has no tokenizer.json"
            raise UnsupportedOptionError(f"{what}; leave it out")
        self.save_vocabulary(folder, options.filename_prefix)
        added = {index: token.__getstate__() for index, token in self._added.items()}
        own = {"tgt_lang": self.tgt_lang, "tokenizer_class": type(self).__name__}
        settings = {**own, "added_tokens_decoder": added}
        self._write_settings(folder, options.filename_prefix, **settings)


def _known_options() -> set[str]:
    return {*_OPTIONS, *[*signature(Speech2TextTokenizer).parameters][2:-1]}


def _pattern(token: AddedToken) -> str:
    """What finds a token in a text, with the white space that it takes with it."""
    pattern = re.escape(token.content)
    pattern = rf"(?<![^ ]){pattern}(?![^ ])" if token.single_word else pattern
    return r"\s*" * token.lstrip + pattern + r"\s*" * token.rstrip


def _as_given(value: Any) -> Any:
    """Tokens of a configuration as the class takes them."""
    return added_token(value) if isinstance(value, dict) and "content" in value else value
