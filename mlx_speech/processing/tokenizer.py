"""A checkpoint's tokenizer: text to ids and back, and its chat template."""

import shutil
import warnings
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Self

from tokenizers import AddedToken, models, processors
from tokenizers import Tokenizer as Backend

from ..checkpoint.hub import resolve_checkpoint, take_hub_options
from ..checkpoint.saving import folder_path
from ..errors import CheckpointError, InputError, MlxSpeechError, UnsupportedOptionError
from ..fields import fitted
from .base_tokenizer import BaseTokenizer, SavingOptions, Text, file_prefix
from .batch import BatchEncoding
from .chat_template import Templates, find_chat_templates, template_settings, write_chat_templates
from .chat_tokenizer import ChatTokenizer
from .encoding_options import EncodingOptions, check_side
from .tokenizer_files import (
    FURTHER_TOKENS,
    SENTENCEPIECE_FILE,
    SPECIAL_TOKENS,
    panics_as_errors,
    plain_settings,
    read_tokenizer,
)

_OPTIONS = {
    *SPECIAL_TOKENS,
    *FURTHER_TOKENS,
    *("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "use_default_system_prompt"),
    *("padding_side", "truncation_side", "model_max_length", "model_input_names"),
    *("clean_up_tokenization_spaces", "spaces_between_special_tokens", "split_special_tokens"),
    *("added_tokens_decoder", "chat_template"),
}
#: what of an encoding of the tokenizers library is called otherwise in a batch
_ITEMS = {"input_ids": "ids", "token_type_ids": "type_ids", "offset_mapping": "offsets"}
# the library's tokenizers keep how to cut and what to split: calls of two threads must not mix
_SETTINGS = Lock()


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Settings of a tokenizer that a caller gives, as configurations have them.

    Raises:
        InputError: there is no such setting, or one is of another type.
    """
    plain = plain_settings(options)
    tokens = {
        n for n, value in plain.items() if n.endswith("_token") and isinstance(value, str | dict)
    }
    if unknown := ", ".join(sorted(plain.keys() - _OPTIONS - tokens)):
        known = ", ".join(sorted(_OPTIONS))
        raise InputError(f"a tokenizer has no option {unknown}, but {known}")
    Tokenizer.check_spaces(plain.pop("spaces_between_special_tokens", None))
    return plain


def _added(name: str, where: str) -> property:
    return property(
        lambda self: self._added[name],
        lambda self, value: self._add_around({name: fitted(f"add_{name}", value, bool)}),
        doc=f"Whether encoding puts the {name.replace('_', ' ')} {where} a text.",
    )


class Tokenizer(ChatTokenizer, BaseTokenizer):
    """tokenizer.json or tokenizer.model, with the special tokens and the chat template that stand
    beside it.

    Args:
        backend: what does the work, an object of the tokenizers library.
        config: the settings of tokenizer_config.json.
        chat_template: Jinja source, if the checkpoint has one, or several by name.
    """

    _llama: ClassVar[bool] = False
    default_padding_side = "left"
    spaces_between_special_tokens = False
    is_fast = True
    #: a tokenizer.model that it was read from
    vocab_file: Path | None = None

    add_bos_token = _added("bos_token", "before")
    add_eos_token = _added("eos_token", "after")

    def __init__(self, backend: Backend, config: dict[str, Any], chat_template: Templates = None):
        super().__init__(config)
        # what the file holds of these is left over from its training
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.chat_template = fitted("chat_template", chat_template, str | dict[str, str] | None)
        with panics_as_errors():
            around = backend.encode("").ids  # which of the two the backend adds by itself
        bos = around[:1] == [self.bos_token_id]
        eos = around[bos:][-1:] == [self.eos_token_id]
        self._added = {"bos_token": bos, "eos_token": eos}
        told = {name: self.config.get(f"add_{name}") for name in self._added}
        if told := {name: value for name, value in told.items() if value is not None}:
            self._add_around(told)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *, name: str | None = None, **options: Any
    ) -> Self:
        """Read the tokenizer of a local folder or a Hugging Face repository.

        Args:
            name: not needed here; every processor takes it.
            options: those of `HubOptions`, such as `revision`, and settings that are to differ from
                the checkpoint's: special tokens by name, `extra_special_tokens`, `add_bos_token`,
                `add_eos_token`, `padding_side`, `truncation_side`, `model_max_length`,
                `chat_template` and so on; for one like Llama 2's also `legacy` and
                `add_prefix_space`.

        Raises:
            CheckpointError: there is no readable tokenizer.json and no readable tokenizer.model.
            InputError: there is no such option, or one is of another type.
        """
        hub = take_hub_options(options)
        settings = check_options(options)
        chat_template = settings.pop("chat_template", None)
        folder = resolve_checkpoint(pretrained_model_name_or_path, weights=False, **hub)
        backend, config = read_tokenizer(folder, settings, llama=cls._llama)
        tokenizer = cls.__new__(cls)
        templates = chat_template or find_chat_templates(folder, config)
        Tokenizer.__init__(tokenizer, backend, config, templates)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        if (file := folder / SENTENCEPIECE_FILE).is_file():
            tokenizer.vocab_file = file
        return tokenizer

    @property
    def backend_tokenizer(self) -> Backend:
        """The object of the tokenizers library that does the work."""
        return self.backend

    def __len__(self) -> int:
        """Tokens in all, with those added to the vocabulary."""
        return self.backend.get_vocab_size()

    @property
    def vocab_size(self) -> int:
        """Tokens without those that were added to the vocabulary."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens."""
        return self.backend.get_vocab()

    @property
    def vocab(self) -> dict[str, int]:
        """As `get_vocab`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """By id, the tokens that are found in a text before it is split."""
        return self.backend.get_added_tokens_decoder()

    def _add(self, tokens: list[str | AddedToken], special: bool) -> int:
        return (self.backend.add_special_tokens if special else self.backend.add_tokens)(tokens)

    def _forget_tokens(self) -> None:
        self.__dict__.pop("_open_tokens", None)  # those that streaming may have cached

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)

    def _token_of(self, index: int) -> str | None:
        return self.backend.id_to_token(index) if index >= 0 else None

    def _set_special_token(self, name: str, token: str | AddedToken | None) -> None:
        super()._set_special_token(name, token)
        if self._added.get(name):
            self.update_post_processor()

    def _layout(self, pair: bool) -> list[tuple[int | str, int]]:
        token = next(iter(self.all_special_tokens), "a")  # any text of at least one token
        with panics_as_errors():
            encoding = self.backend.encode(token, token if pair else None)
        rows = zip(encoding.ids, encoding.sequence_ids, encoding.type_ids, strict=True)
        parts = [(i if text is None else "AB"[text], kind) for i, text, kind in rows]
        same = (
            isinstance(part, str) and part == before for (before, _), (part, _) in pairwise(parts)
        )
        return [part for part, again in zip(parts, (False, *same), strict=True) if not again]

    def _encode_rows(
        self, rows: Sequence[tuple[Text, Text | None]], options: EncodingOptions
    ) -> BatchEncoding:
        made = self._encodings(rows, options)
        overflowing = options.return_overflowing_tokens
        parts = [[each, *each.overflowing] if overflowing else [each] for each in made]
        encodings = [part for each in parts for part in each]
        length = options.padded_length([len(encoding) for encoding in made])
        if length is not None:
            fill, token = self._fill()
            where = {"direction": self._side(options), "pad_id": fill, "pad_token": token}
            for encoding in encodings:
                encoding.pad(length, **where)
        wanted = {
            "input_ids": True,
            "token_type_ids": self._returns("token_type_ids", options.return_token_type_ids),
            "attention_mask": self._returns("attention_mask", options.return_attention_mask),
            "special_tokens_mask": options.return_special_tokens_mask,
            "offset_mapping": options.return_offsets_mapping,
        }
        items: dict[str, list] = {
            name: [getattr(encoding, _ITEMS.get(name, name)) for encoding in encodings]
            for name, asked in wanted.items()
            if asked
        }
        if options.return_length:
            items["length"] = [len(encoding) for encoding in encodings]
        if overflowing:
            items["overflow_to_sample_mapping"] = [
                row for row, each in enumerate(parts) for _ in each
            ]
        return BatchEncoding(items, encodings)

    def _encodings(
        self, rows: Sequence[tuple[Text, Text | None]], options: EncodingOptions
    ) -> list[Any]:
        how = {
            "is_pretokenized": options.is_split_into_words,
            "add_special_tokens": options.add_special_tokens,
        }
        if options.truncation and options.stride:
            self._check_stride(options, any(second is not None for _, second in rows))
        split = options.split_special_tokens
        split = self.split_special_tokens if split is None else split
        with panics_as_errors(), _SETTINGS:
            try:
                if self.backend.encode_special_tokens != split:
                    self.backend.encode_special_tokens = split
                if options.truncation:
                    self.backend.enable_truncation(
                        options.max_length or 0,
                        stride=options.stride,
                        strategy=options.truncation,
                        direction=check_side("truncation_side", self.truncation_side),
                    )
                return [self.backend.encode(first, second, **how) for first, second in rows]
            except MlxSpeechError:
                raise
            except Exception as error:  # the library raises nothing more specific
                raise InputError(f"the text cannot be encoded so: {error}") from error
            finally:
                if options.truncation:
                    self.backend.no_truncation()

    def _check_stride(self, options: EncodingOptions, pairs: bool) -> None:
        """Raises `InputError` where rows may have no room for what they are to have in common, upon
        which the library gives up."""
        around = self.num_special_tokens_to_add(pairs) if options.add_special_tokens else 0
        room = (options.max_length or 0) - around
        if pairs and options.truncation == "longest_first":
            room //= 2
        if options.stride >= room:
            rule = f"below {room}, the tokens of a text in a row of max_length"
            raise InputError.must_be("stride", options.stride, rule)

    def tokenize(
        self, text: Text, pair: Text | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Tokens of a text, or of a pair of them; arguments as for a call."""
        given = {"return_tensors": None, **options, "add_special_tokens": add_special_tokens}
        return self(text, pair, **given).tokens()

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Text of tokens."""
        tokens = fitted("tokens", tokens, list[str])
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        try:
            return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise InputError(f"not token ids: {min(ids)} to {max(ids)}") from error

    def _cleans_up(self, asked: bool | None) -> bool:
        if not isinstance(self.backend.model, models.BPE):
            return super()._cleans_up(asked)
        if asked:
            why = "the spaces belong to the texts of byte-pair encoding"
            warnings.warn(f"clean_up_tokenization_spaces has no effect: {why}", stacklevel=3)
        return False

    def is_open(self, token: int) -> bool:
        """Whether a token after this one may yet change the text: see `StreamingDetokenizer`.

        So it is with bytes that stand for rare characters: where one of a run of them fits no
        character, `decode` gives up the whole run. A special token, skipped, does not end one.
        """
        return token in self._open_tokens

    @cached_property
    def _open_tokens(self) -> set[int | None]:
        special = {i for i, t in self.backend.get_added_tokens_decoder().items() if t.special}
        return special | {self.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}

    def update_post_processor(self) -> None:
        """Let encoding put around a text what `add_bos_token` and `add_eos_token` say, no more."""
        tokens = {name: self.special_token(name) for name, added in self._added.items() if added}
        bos, eos = tokens.get("bos_token"), tokens.get("eos_token")
        first, second = (
            [f"{part}:{number}" for part in (bos, f"${letter}", eos) if part]
            for number, letter in enumerate("AB")
        )
        ids = [(t, self._id_of(t)) for t in set(tokens.values()) if t]
        template = processors.TemplateProcessing(first, first + second, special_tokens=ids)
        self.backend.post_processor = template

    def _add_around(self, added: dict[str, bool]) -> None:
        for name, value in added.items():
            if value and self.special_token(name) is None:
                raise InputError(f"this tokenizer has no {name} that it could add to a text")
        self._added |= added
        self.update_post_processor()

    def save_vocabulary(
        self, save_directory: str | Path, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the vocabulary alone to a folder that there is: tokenizer.model, if that was read,
        or else vocab.json and merges.txt, or what the tokenizers library has of another algorithm.

        Returns:
            Paths of the files.

        Raises:
            CheckpointError: the folder cannot be written to.
            InputError: it is no path.
        """
        folder, prefix = folder_path(save_directory), file_prefix(filename_prefix)
        try:
            if self.vocab_file is None:
                return tuple(self.backend.model.save(str(folder), prefix[:-1] or None))
            file = folder / f"{prefix}{SENTENCEPIECE_FILE}"
            if not (file.exists() and file.samefile(self.vocab_file)):
                shutil.copyfile(self.vocab_file, file)
            return (str(file),)
        except Exception as error:  # also of the tokenizers library, which raises no other
            raise CheckpointError(f"{folder}: cannot be written to: {error}") from error

    def _save(self, folder: Path, options: SavingOptions) -> None:
        prefix = file_prefix(options.filename_prefix)
        if options.legacy_format and self.vocab_file is None:
            what = "legacy_format: this tokenizer was read from no tokenizer.model"
            raise UnsupportedOptionError(f"{what}; leave it out to write tokenizer.json")
        if options.legacy_format is not False and self.vocab_file is not None:
            self.save_vocabulary(folder, options.filename_prefix)
        with panics_as_errors():
            self.backend.save(str(folder / f"{prefix}tokenizer.json"))
        settings: dict[str, Any] = {}
        if options.save_jinja_files:
            write_chat_templates(folder, self.chat_template, prefix)
        elif self.chat_template is not None:
            settings["chat_template"] = template_settings(self.chat_template)
        settings["tokenizer_class"] = self.config.get("tokenizer_class", "PreTrainedTokenizerFast")
        self._write_settings(folder, options.filename_prefix, **settings)
