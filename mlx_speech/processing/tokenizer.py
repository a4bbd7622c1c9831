"""A checkpoint's tokenizer: text to ids and back, and its chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import mlx.core as mx
from tokenizers import Tokenizer as Backend

from ..errors import InputError, UnsupportedOptionError
from .batch import BatchEncoding, as_ids, check_arrays, pad_rows
from .chat_template import choose_chat_template, find_chat_templates, render_chat
from .special_tokens import SpecialTokens
from .tokenizer_files import named_tokens, read_tokenizer

_OPTIONS = {
    *("bos_token", "eos_token", "unk_token", "pad_token"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "padding_side"),
}
#: arguments of apply_chat_template in transformers that would be taken for variables
_NOT_SUPPORTED = (
    "continue_final_message",
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
    "truncation",
)


class Tokenizer(SpecialTokens):
    """tokenizer.json or tokenizer.model, with the special tokens and the chat template that stand
    beside it.

    Args:
        backend: what does the work.
        config: the settings of tokenizer_config.json.
        chat_template: Jinja source, if the checkpoint has one, or several by name.
    """

    _llama: ClassVar[bool] = False

    def __init__(
        self,
        backend: Backend,
        config: dict[str, Any],
        chat_template: str | dict[str, str] | None = None,
    ):
        # what the file holds of these is left over from its training
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = config.get("split_special_tokens", False)
        self.backend = backend
        self.config = dict(config)
        self.chat_template = chat_template
        #: where a batch's shorter rows are filled up: "left" or "right"
        self.padding_side = config.get("padding_side", "left")
        self._added = self._find_added()
        told = {name: config.get(f"add_{name}") for name in self._added}
        if told := {name: value for name, value in told.items() if value is not None}:
            self._add_around(**told)

    @classmethod
    def from_pretrained(
        cls, path_or_repo, *, revision: str | None = None, name: str | None = None, **options: Any
    ) -> Tokenizer:
        """Read the tokenizer of a local folder or a Hugging Face repository.

        Args:
            revision: branch, tag or commit of the repository.
            name: not needed here; every processor takes it.
            options: settings that are to differ from the checkpoint's: `bos_token`, `eos_token`,
                `unk_token`, `pad_token`, `add_bos_token`, `add_eos_token`, `padding_side`; for
                one like Llama 2's also `legacy` and `add_prefix_space`.

        Raises:
            CheckpointError: there is no readable tokenizer.json and no readable tokenizer.model.
            InputError: there is no such option.
        """
        from ..checkpoint.hub import resolve_checkpoint

        if unknown := options.keys() - _OPTIONS:
            raise InputError(
                f"a tokenizer has no option {', '.join(sorted(unknown))}, but "
                f"{', '.join(sorted(_OPTIONS))}"
            )
        folder = resolve_checkpoint(path_or_repo, revision=revision, weights=False)
        backend, config = read_tokenizer(folder, options, llama=cls._llama)
        return cls(backend, config, find_chat_templates(folder, config))

    def __len__(self) -> int:
        """Tokens in all, with those added to the vocabulary."""
        return self.backend.get_vocab_size()

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens."""
        return self.backend.get_vocab()

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Id of a token, or ids of several; the unknown token's for what is none."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: Sequence[int] | mx.array) -> list[str | None]:
        """Tokens as they stand in the vocabulary, None for ids that it does not have."""
        return [self.backend.id_to_token(i) for i in as_ids(ids)]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids.

        Args:
            add_special_tokens: also those that the tokenizer puts around each text. A prompt from
                `apply_chat_template` has them already.

        Raises:
            InputError: not a text, or one with a lone surrogate.
        """
        if not isinstance(text, str):
            raise InputError(f"only text can be encoded, not {type(text).__name__}")
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            # the library's word for half a surrogate pair; Python's says where it is
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"the text has a lone surrogate, {text[error.start]!r}, at position "
                    f"{error.start}: it is not valid Unicode"
                ) from error
            raise

    def decode(
        self,
        ids: int | Sequence[int] | Sequence[Sequence[int]] | mx.array,
        *,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Text of token ids; of several rows of them, a list of texts.

        Args:
            skip_special_tokens: leave these out.
            clean_up_tokenization_spaces: cannot be True: the spaces belong to the text.

        Raises:
            InputError: an id is below zero.
        """
        if clean_up_tokenization_spaces:
            raise UnsupportedOptionError(
                "clean_up_tokenization_spaces would take spaces out of the text; leave it out"
            )
        ids = as_ids(ids)
        if ids and isinstance(ids[0], (list, tuple)):
            return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in ids]
        try:
            return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise InputError(f"not token ids: {min(ids)} to {max(ids)}") from error

    def batch_decode(
        self, sequences: Sequence[Sequence[int]] | mx.array, **options: Any
    ) -> list[str]:
        """Texts of several rows of token ids; options as in `decode`."""
        return [self.decode(row, **options) for row in sequences]

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

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = True,
        return_tensors: str = "mlx",
    ) -> BatchEncoding:
        """Encode a batch.

        Args:
            text: one text or several.
            add_special_tokens: as for `encode`.
            padding, return_tensors: see `check_arrays`.

        Returns:
            `input_ids` and `attention_mask`, (batch, length), filled up on the `padding_side`.

        Raises:
            InputError: there is no text, one is as in `encode`, or one is shorter though it may
                not be.
        """
        texts: Sequence[Any] = text if isinstance(text, (list, tuple)) else [text]
        rows = [self.encode(t, add_special_tokens=add_special_tokens) for t in texts]
        check_arrays(return_tensors, padding, [len(row) for row in rows], "texts")
        return self.pad({"input_ids": rows})

    def pad(self, encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> BatchEncoding:
        """Fill up rows of token ids to the longest; see `pad_rows`.

        Where no `pad_token` is set, another special token stands in: the mask excludes it.
        """
        candidates = (self.pad_token_id, self.eos_token_id, self.bos_token_id, 0)
        fill = next(token for token in candidates if token is not None)
        return pad_rows(encoded_inputs, fill=fill, side=self.padding_side)

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str = "mlx",
        **variables: Any,
    ) -> str | BatchEncoding | mx.array:
        """The prompt for a conversation.

        Args:
            messages: `{"role": ..., "content": "text"}`.
            tools: JSON schemas of functions, for a template that knows tools.
            documents: `{"title": ..., "text": ...}`, for one that knows documents.
            chat_template: the name of one of several templates, or Jinja source.
            add_generation_prompt: end with what begins the assistant's answer.
            tokenize: encode the prompt.
            return_dict: when encoded, also the mask, as from a call; else the ids alone.
            return_tensors: as for a call.
            variables: further ones that the template knows.

        Returns:
            The prompt, or its encoding, a batch of one.

        Raises:
            InputError: the checkpoint has no chat template, or its template refuses the messages.
            UnsupportedOptionError: an argument of the same method in transformers.
        """
        if asked := [name for name in _NOT_SUPPORTED if variables.pop(name, None)]:
            raise UnsupportedOptionError(f"apply_chat_template does not support {', '.join(asked)}")
        special = {name: self.special_token(name) for name in named_tokens(self.config)}
        prompt = render_chat(
            choose_chat_template(self.chat_template, chat_template, tools),
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            **{**special, **variables},
        )
        if not tokenize:
            return prompt
        encoding = self(prompt, add_special_tokens=False, return_tensors=return_tensors)
        return encoding if return_dict else encoding["input_ids"]


class LlamaTokenizer(Tokenizer):
    """A tokenizer that works as Llama 2's.

    A text begins with a space that decoding takes away again, and what has no token is spelt in
    UTF-8 bytes. With `legacy` a space is also put after each special token within a text.

    Reads tokenizer.json or the sentencepiece file tokenizer.model. `Tokenizer.from_pretrained`
    does the same for folders that name this class or have tokenizer.model alone.
    """

    _llama = True
