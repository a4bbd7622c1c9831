"""A checkpoint's tokenizer: text to ids and back, and its chat template."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import mlx.core as mx
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from ..checkpoint.hub import resolve_checkpoint
from ..errors import InputError, UnsupportedOptionError
from ..fields import fitted
from .base_tokenizer import BaseTokenizer, check_text
from .batch import as_ids, as_row
from .chat_template import Templates, choose_chat_template, find_chat_templates, render_chat
from .tokenizer_files import (
    SPECIAL_TOKENS,
    content_of,
    named_tokens,
    panics_as_errors,
    read_tokenizer,
)

_OPTIONS = {
    *("bos_token", "eos_token", "unk_token", "pad_token"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "padding_side"),
}
#: arguments of apply_chat_template in transformers that would be taken for variables
_NOT_SUPPORTED = (
    *("continue_final_message", "max_length", "padding", "return_assistant_tokens_mask"),
    *("sanitize_control_tokens", "tokenizer_kwargs", "truncation"),
)


def _token(name: str) -> property:
    return property(
        lambda self: self.special_token(name),
        lambda self, token: self._set_special_token(name, token),
        doc=f"Text of the {name.replace('_', ' ')}, or None; can be set to any token there is.",
    )


def _added(name: str, where: str) -> property:
    return property(
        lambda self: self._added[name],
        lambda self, value: self._add_around({name: value}),
        doc=f"Whether encoding puts the {name.replace('_', ' ')} {where} a text.",
    )


class Tokenizer(BaseTokenizer):
    """tokenizer.json or tokenizer.model, with the special tokens and the chat template that stand
    beside it.

    Args:
        backend: what does the work.
        config: the settings of tokenizer_config.json.
        chat_template: Jinja source, if the checkpoint has one, or several by name.
    """

    _llama: ClassVar[bool] = False

    bos_token = _token("bos_token")
    eos_token = _token("eos_token")
    unk_token = _token("unk_token")
    pad_token = _token("pad_token")
    add_bos_token = _added("bos_token", "before")
    add_eos_token = _added("eos_token", "after")

    def __init__(self, backend: Backend, config: dict[str, Any], chat_template: Templates = None):
        # what the file holds of these is left over from its training
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = config.get("split_special_tokens", False)
        self.backend = backend
        self.config = dict(config)
        self.chat_template = chat_template
        self.padding_side = config.get("padding_side", "left")
        with panics_as_errors():
            around = backend.encode("").ids  # which of the two the backend adds by itself
        bos = around[:1] == [self.bos_token_id]
        eos = around[bos:][-1:] == [self.eos_token_id]
        self._added = {"bos_token": bos, "eos_token": eos}
        told = {name: config.get(f"add_{name}") for name in self._added}
        if told := {name: value for name, value in told.items() if value is not None}:
            self._add_around(told)

    @classmethod
    def from_pretrained(
        cls, path_or_repo, *, revision: str | None = None, name: str | None = None, **options: Any
    ) -> Self:
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
        if unknown := ", ".join(sorted(options.keys() - _OPTIONS)):
            known = ", ".join(sorted(_OPTIONS))
            raise InputError(f"a tokenizer has no option {unknown}, but {known}")
        folder = resolve_checkpoint(path_or_repo, revision=revision, weights=False)
        backend, config = read_tokenizer(folder, options, llama=cls._llama)
        return cls(backend, config, find_chat_templates(folder, config))

    def __len__(self) -> int:
        """Tokens in all, with those added to the vocabulary."""
        return self.backend.get_vocab_size()

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens."""
        return self.backend.get_vocab()

    def convert_ids_to_tokens(self, ids: Sequence[int] | mx.array) -> list[str | None]:
        """Tokens as they stand in the vocabulary, None for ids that it does not have."""
        return [None if i < 0 else self.backend.id_to_token(i) for i in as_row(ids)]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids.

        Args:
            add_special_tokens: also those that the tokenizer puts around each text. A prompt from
                `apply_chat_template` has them already.

        Raises:
            CheckpointError: the tokenizer.json has a pattern that takes too long on it.
            InputError: not a text, or one with a lone surrogate.
        """
        surrogate = "the text has a lone surrogate, {}, at position {}: it is not valid Unicode"
        check_text(text, surrogate)
        with panics_as_errors():
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

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
            what = "clean_up_tokenization_spaces would take spaces out of the text; leave it out"
            raise UnsupportedOptionError(what)
        ids = as_ids(ids)
        if ids and isinstance(ids[0], (list, tuple)):
            return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in ids]
        try:
            return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise InputError(f"not token ids: {min(ids)} to {max(ids)}") from error

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

    def special_token(self, name: str) -> str | None:
        """The text of e.g. `eos_token`, or None."""
        return self._special_tokens().get(name)

    def _special_tokens(self) -> dict[str, str]:
        return {name: content_of(token) for name, token in named_tokens(self.config).items()}

    def add_special_tokens(self, special_tokens: Mapping[str, Any]) -> int:
        """Name special tokens; those that are new get the next ids.

        A model needs rows for these: `model.resize_token_embeddings(len(tokenizer))`.

        Args:
            special_tokens: text by name, as in `{"pad_token": "<pad>"}`, and as
                `extra_special_tokens` a list of further ones.

        Returns:
            How many were added.

        Raises:
            InputError: there is no such name, or a token is not text.
        """
        named = fitted("special_tokens", special_tokens, dict)
        further = fitted("extra_special_tokens", named.get("extra_special_tokens", []), list)
        named = {name: token for name, token in named.items() if name != "extra_special_tokens"}
        if unknown := ", ".join(sorted(named.keys() - set(SPECIAL_TOKENS))):
            known = f"{', '.join(SPECIAL_TOKENS)} and extra_special_tokens"
            raise InputError(f"no special token is called {unknown}, but {known}")
        tokens = [*named.values(), *further]
        if not all(isinstance(token, str) and token for token in tokens):
            raise InputError(f"special tokens have to be text: {tokens}")
        try:
            new = [AddedToken(token, special=True, normalized=False) for token in tokens]
            added = self.backend.add_special_tokens(new)
        except UnicodeEncodeError as error:
            raise InputError(f"a special token has a lone surrogate: {error}") from error
        self.__dict__.pop("_open_tokens", None)  # one that streaming may have cached
        for name, token in named.items():
            self._set_special_token(name, token)
        return added

    def update_post_processor(self) -> None:
        """Let encoding put around a text what `add_bos_token` and `add_eos_token` say, no more."""
        tokens = {name: self.special_token(name) for name, added in self._added.items() if added}
        parts = (tokens.get("bos_token"), "$A", tokens.get("eos_token"))
        single = [part for part in parts if part]
        ids = [(t, self._id_of(t)) for t in set(tokens.values()) if t]
        self.backend.post_processor = processors.TemplateProcessing(single, special_tokens=ids)

    def _add_around(self, added: dict[str, bool]) -> None:
        for name, value in added.items():
            if value and self.special_token(name) is None:
                raise InputError(f"this tokenizer has no {name} that it could add to a text")
        self._added |= added
        self.update_post_processor()

    def _set_special_token(self, name: str, token: str | None) -> None:
        if not isinstance(token, str | None):
            raise InputError.must_be(name, token, "text")
        if token is not None and self._id_of(token) is None:
            remedy = f'add_special_tokens({{"{name}": "{token}"}})'
            raise InputError(f"{token!r} is no token of this tokenizer; to add it: {remedy}")
        self.config[name] = token
        if self._added.get(name):
            self.update_post_processor()

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)

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
    ) -> Any:
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
        variables |= {"tools": tools, "documents": documents}
        variables["add_generation_prompt"] = add_generation_prompt
        template = choose_chat_template(self.chat_template, chat_template, tools)
        prompt = render_chat(template, messages, **{**self._special_tokens(), **variables})
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
