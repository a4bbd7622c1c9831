"""The tokens with a meaning: names, ids, new ones, and those that encoding puts around a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from ..errors import InputError
from .tokenizer_files import SPECIAL_TOKENS, content_of, named_tokens


def _token(name: str) -> property:
    return property(
        lambda self: self.special_token(name),
        lambda self, token: self._set_special_token(name, token),
        doc=f"Text of the {name.replace('_', ' ')}, or None; can be set to any token there is.",
    )


def _token_id(name: str) -> property:
    return property(
        lambda self: self._id_of(self.special_token(name)),
        doc=f"Id of the {name.replace('_', ' ')}, or None.",
    )


class SpecialTokens:
    """The part of `Tokenizer` that knows its special tokens."""

    backend: Backend
    config: dict[str, Any]
    #: which of the two encoding puts around a text
    _added: dict[str, bool]

    bos_token, bos_token_id = _token("bos_token"), _token_id("bos_token")
    eos_token, eos_token_id = _token("eos_token"), _token_id("eos_token")
    unk_token, unk_token_id = _token("unk_token"), _token_id("unk_token")
    pad_token, pad_token_id = _token("pad_token"), _token_id("pad_token")

    def special_token(self, name: str) -> str | None:
        """The text of e.g. `eos_token`, or None."""
        token = named_tokens(self.config).get(name)
        return None if token is None else content_of(token)

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
        named = dict(special_tokens)
        further = named.pop("extra_special_tokens", [])
        if unknown := named.keys() - set(SPECIAL_TOKENS):
            raise InputError(
                f"no special token is called {', '.join(sorted(unknown))}, but "
                f"{', '.join(SPECIAL_TOKENS)} and extra_special_tokens"
            )
        tokens = [*named.values(), *further]
        if not all(isinstance(token, str) and token for token in tokens):
            raise InputError(f"special tokens have to be text: {tokens}")
        try:
            added = self.backend.add_special_tokens(
                [AddedToken(token, special=True, normalized=False) for token in tokens]
            )
        except UnicodeEncodeError as error:
            raise InputError(f"a special token has a lone surrogate: {error}") from error
        self.__dict__.pop("_open_tokens", None)  # one that streaming may have cached
        for name, token in named.items():
            self._set_special_token(name, token)
        return added

    @property
    def add_bos_token(self) -> bool:
        """Whether encoding puts the bos token before a text."""
        return self._added["bos_token"]

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._add_around(bos_token=value)

    @property
    def add_eos_token(self) -> bool:
        """Whether encoding puts the eos token after a text."""
        return self._added["eos_token"]

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._add_around(eos_token=value)

    def update_post_processor(self) -> None:
        """Let encoding put around a text what `add_bos_token` and `add_eos_token` say, no more."""
        tokens = {name: self.special_token(name) for name, added in self._added.items() if added}
        parts = (tokens.get("bos_token"), "$A", tokens.get("eos_token"))
        self.backend.post_processor = processors.TemplateProcessing(
            single=[part for part in parts if part],
            special_tokens=[(t, self._id_of(t)) for t in set(tokens.values()) if t],
        )

    def _add_around(self, **added: bool) -> None:
        for name, value in added.items():
            if value and self.special_token(name) is None:
                raise InputError(f"this tokenizer has no {name} that it could add to a text")
        self._added |= added
        self.update_post_processor()

    def _find_added(self) -> dict[str, bool]:
        """Which of the two the backend adds by itself."""
        around = self.backend.encode("").ids
        bos = around[:1] == [self.bos_token_id]
        return {"bos_token": bos, "eos_token": around[bos:][-1:] == [self.eos_token_id]}

    def _set_special_token(self, name: str, token: str | None) -> None:
        if token is not None and self._id_of(token) is None:
            raise InputError(
                f"{token!r} is no token of this tokenizer; to add it: "
                f'add_special_tokens({{"{name}": "{token}"}})'
            )
        self.config[name] = token
        if self._added.get(name):
            self.update_post_processor()

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.backend.token_to_id(token)
