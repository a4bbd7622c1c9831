"""Speech2Text's tokenizer: text to ids and back."""

import os
import re
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Self

import mlx.core as mx

from ..checkpoint.folder import read_json
from ..checkpoint.hub import resolve_checkpoint
from ..errors import CheckpointError, InputError, UnsupportedOptionError
from ..fields import Range, fit_items, fitted
from .base_tokenizer import BaseTokenizer, check_text
from .batch import as_ids, as_row
from .tokenizer_files import (
    TokenizerSettings,
    content_of,
    further_tokens,
    named_tokens,
    read_tokenizer_config,
)

VOCAB_FILE = "vocab.json"
TokenIndex = Annotated[int, Range(0, 2**24 - 1)]
SPM_FILE = "sentencepiece.bpe.model"
#: languages by the checkpoints' `lang_codes`
LANGUAGES = {"mustc": ["pt", "fr", "ru", "nl", "ro", "it", "es", "de"]}


class Speech2TextTokenizer(BaseTokenizer):
    """SentencePiece cuts text into pieces, vocab.json gives them their ids.

    The arguments are the fields of tokenizer_config.json.

    Args:
        vocab_file, spm_file: paths of vocab.json and of the SentencePiece model.
        bos_token, eos_token, pad_token, unk_token: special tokens.
        do_upper_case: whether decoded text becomes upper case.
        do_lower_case: whether text becomes lower case before it is encoded.
        tgt_lang: language whose token begins encoded text; the first one if not given. Without
            `lang_codes` it means nothing.
        lang_codes: name of the languages that a multilingual checkpoint translates to.
        additional_special_tokens: further ones.
        sp_model_kwargs: options of the SentencePieceProcessor.

    Attributes:
        lang_code_to_id: ids of the target languages' tokens, to begin an answer with; empty in
            checkpoints of one language. SentencePiece's own ids, as in the reference, with a
            warning where vocab.json has others.

    Raises:
        CheckpointError: a file is missing or damaged, or lacks a special token; or `lang_codes` is
            unknown.
        UnsupportedOptionError: `tgt_lang` is not among the languages.
    """

    padding_side = "right"

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        spm_file: str | os.PathLike,
        *,
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        pad_token: str = "<pad>",
        unk_token: str = "<unk>",
        do_upper_case: bool = False,
        do_lower_case: bool = False,
        tgt_lang: str | None = None,
        lang_codes: str | None = None,
        additional_special_tokens: Sequence[str] = (),
        sp_model_kwargs: dict[str, Any] | None = None,
    ):
        self.encoder = read_json(Path(vocab_file).parent, Path(vocab_file).name)
        try:
            for piece, index in self.encoder.items():
                self.encoder[piece] = fitted(repr(piece), index, TokenIndex)
        except InputError as error:
            raise CheckpointError(f"{vocab_file}: {error}") from None
        self.decoder = {index: piece for piece, index in self.encoder.items()}
        if len(self.decoder) < len(self.encoder):
            raise CheckpointError(f"{vocab_file}: an id stands there for several pieces")
        self.sp_model = _read_spm(Path(spm_file), sp_model_kwargs or {})
        self.do_upper_case, self.do_lower_case = do_upper_case, do_lower_case
        named = [bos_token, eos_token, unk_token, pad_token]
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = named
        if lost := [token for token in named if token not in self.encoder]:
            raise CheckpointError(f"{vocab_file}: lacks the special token {lost[0]}")
        if lang_codes is not None and lang_codes not in LANGUAGES:
            known = ", ".join(LANGUAGES)
            raise CheckpointError(f"lang_codes {lang_codes!r} is not known; known are {known}")
        self.lang_codes = lang_codes
        self.langs = [] if lang_codes is None else LANGUAGES[lang_codes]
        self.lang_tokens = [f"<lang:{lang}>" for lang in self.langs]
        ids = [self.sp_model.piece_to_id(token) for token in self.lang_tokens]
        self.lang_code_to_id = dict(zip(self.langs, ids, strict=True))
        rows = zip(self.langs, ids, map(self.encoder.get, self.lang_tokens), strict=True)
        differing = [f"{lang} is {spm} and {vocab}" for lang, spm, vocab in rows if spm != vocab]
        if differing:
            what = "SentencePiece and the vocabulary differ about target languages"
            rule = "SentencePiece's ids are used, as in transformers"
            warnings.warn(f"{vocab_file}: {what}, {', '.join(differing)}; {rule}", stacklevel=2)
        special = [*named, *self.lang_tokens, *additional_special_tokens]
        self.all_special_tokens = list(dict.fromkeys(special))
        self.all_special_ids = self.convert_tokens_to_ids(self.all_special_tokens)
        longest_first = sorted(self.all_special_tokens, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._tgt_lang: str | None = None
        if self.langs:
            self.tgt_lang = tgt_lang if tgt_lang is not None else self.langs[0]

    @classmethod
    def from_pretrained(cls, path_or_repo, *, revision: str | None = None, **options: Any) -> Self:
        """Read the tokenizer of a local folder or a Hugging Face repository.

        Args:
            revision: branch, tag or commit of the repository.
            options: arguments of the class that replace the checkpoint's, e.g. `tgt_lang`.

        Raises:
            CheckpointError: a file is missing or malformed.
            InputError: there is no such option, or it is of another type.
        """
        folder = resolve_checkpoint(path_or_repo, revision=revision, weights=False)
        config = read_tokenizer_config(folder)
        known = cls.__init__.__kwdefaults__ or {}
        if unknown := ", ".join(sorted(options.keys() - known)):
            raise InputError(f"a tokenizer has no option {unknown}, but {', '.join(sorted(known))}")
        options = fit_items(TokenizerSettings, options)
        arguments = {name: config[name] for name in known if config.get(name) is not None}
        tokens = {name: content_of(token) for name, token in named_tokens(config).items()}
        arguments |= {name: tokens[name] for name in arguments.keys() & tokens.keys()}
        arguments["additional_special_tokens"] = [content_of(t) for t in further_tokens(config)]
        return cls(folder / VOCAB_FILE, folder / SPM_FILE, **{**arguments, **options})

    @property
    def vocab_size(self) -> int:
        """Number of entries of vocab.json."""
        return len(self.encoder)

    @property
    def tgt_lang(self) -> str | None:
        """Language whose token begins encoded text; None in checkpoints of one language."""
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, language: str) -> None:
        self.language_id(language)
        self._tgt_lang = language

    @property
    def prefix_tokens(self) -> list[int]:
        """What begins encoded text."""
        return [] if self.tgt_lang is None else [self.lang_code_to_id[self.tgt_lang]]

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

    def _id_of(self, token: str) -> int | None:
        return self.encoder.get(token)

    def tokenize(self, text: str) -> list[str]:
        """Pieces of a text; special tokens in it stay whole.

        Raises:
            InputError: not a text, or not valid Unicode.
        """
        surrogate = "the text has half of a surrogate pair, {}, at character {}: not valid Unicode"
        check_text(text, surrogate)
        pieces: list[str] = []
        for part in self._special.split(text):
            if part in self.all_special_tokens:
                pieces.append(part)
            else:
                text = part.lower() if self.do_lower_case else part
                pieces += self.sp_model.encode(text, out_type=str)
        return pieces

    def encode(self, text: str) -> list[int]:
        """Token ids, from the target language's, if there is one, to that of `eos_token`.

        Raises:
            InputError: not a text, or not valid Unicode.
        """
        ids = self.convert_tokens_to_ids(self.tokenize(text))
        return [*self.prefix_tokens, *ids, self.eos_token_id]

    def convert_ids_to_tokens(
        self, ids: Sequence[int] | mx.array, *, skip_special_tokens: bool = False
    ) -> list[str]:
        """Pieces and special tokens of ids; `unk_token` for those beyond the vocabulary."""
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [self.decoder.get(i, self.unk_token) for i in as_row(ids) if i not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Text of pieces and special tokens; a space follows each of the latter."""
        text = ""
        for special, group in groupby(tokens, self.all_special_tokens.__contains__):
            if special:
                text += "".join(f"{token} " for token in group)
            else:
                words = self.sp_model.decode(list(group))
                text += words.upper() if self.do_upper_case else words
        return text.strip()

    def decode(
        self,
        ids: int | Sequence[int] | Sequence[Sequence[int]] | mx.array,
        *,
        skip_special_tokens: bool = True,
    ) -> Any:
        """Text of token ids; of several rows of them, a list of texts."""
        ids = as_ids(ids)
        if ids and isinstance(ids[0], list | tuple):
            return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in ids]
        pieces = self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)
        return self.convert_tokens_to_string(pieces)


def _read_spm(file: Path, options: dict[str, Any]):
    from sentencepiece import SentencePieceProcessor

    if not file.is_file():
        raise CheckpointError(f"{file.parent}: no {file.name} here, and the tokenizer needs it")
    try:
        model = SentencePieceProcessor(model_file=str(file), **options)
        model.encode("a")  # options are looked at only now
        return model
    except (RuntimeError, TypeError, ValueError, ArithmeticError, OSError) as error:
        raise CheckpointError(f"{file}: not a readable SentencePiece model: {error}") from error
