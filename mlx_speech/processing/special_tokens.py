"""The special tokens of a tokenizer: by name, by id, all of them, and new ones."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from tokenizers import AddedToken

from ..errors import InputError
from ..fields import fitted
from .batch import as_row as _row
from .tokenizer_files import (
    FURTHER_TOKENS,
    SPECIAL_TOKENS,
    content_of,
    further_tokens,
    named_tokens,
    plain_token,
)


def _token(name: str) -> property:
    return property(
        lambda self: self.special_token(name),
        lambda self, token: self._set_special_token(name, token),
        doc=f"Text of the {name.replace('_', ' ')}, or None; can be set to any token there is.",
    )


def _token_id(name: str) -> property:
    return property(
        lambda self: self._id_of(self.special_token(name)),
        lambda self, index: self._set_special_token(name, self._known_token(f"{name}_id", index)),
        doc=f"Id of the {name.replace('_', ' ')}, or None; can be set to that of any token.",
    )


class SpecialTokens:
    """The special tokens of a tokenizer, which its settings name; a subclass knows ids.

    A token is given as text, or as an `AddedToken` of the tokenizers library, which also says how
    it is to be found in a text.

    Attributes:
        config: the settings of tokenizer_config.json.
    """

    config: dict[str, Any]

    bos_token, bos_token_id = _token("bos_token"), _token_id("bos_token")
    eos_token, eos_token_id = _token("eos_token"), _token_id("eos_token")
    unk_token, unk_token_id = _token("unk_token"), _token_id("unk_token")
    sep_token, sep_token_id = _token("sep_token"), _token_id("sep_token")
    pad_token, pad_token_id = _token("pad_token"), _token_id("pad_token")
    cls_token, cls_token_id = _token("cls_token"), _token_id("cls_token")
    mask_token, mask_token_id = _token("mask_token"), _token_id("mask_token")

    def _id_of(self, token: str | None) -> int | None:
        raise NotImplementedError

    def _token_of(self, index: int) -> str | None:
        raise NotImplementedError

    def _add(self, tokens: list[str | AddedToken], special: bool) -> int:
        """Make tokens known, the new ones with the next ids; gives how many are new."""
        raise NotImplementedError

    def _forget_tokens(self) -> None:
        """Called after special or added tokens have changed, for what is kept of them."""

    def _layout(self, pair: bool) -> list[tuple[int | str, int]]:
        """What encoding makes of a text "A", or of a pair with "B": these, and ids around them,
        each with its token type."""
        raise NotImplementedError

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """By id, the tokens that are found in a text before it is split."""
        raise NotImplementedError

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Ids of the tokens that are found in a text before it is split."""
        found = self.added_tokens_decoder
        return {found[index].content: index for index in sorted(found)}

    def get_added_vocab(self) -> dict[str, int]:
        """As `added_tokens_encoder`."""
        return self.added_tokens_encoder

    def special_token(self, name: str) -> str | None:
        """The text of e.g. `eos_token`, or of a checkpoint's own such as `audio_token`, or None."""
        token = named_tokens(self.config).get(name)
        return None if token is None else content_of(token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Texts of the special tokens that have a name."""
        return {name: content_of(token) for name, token in named_tokens(self.config).items()}

    @property
    def extra_special_tokens(self) -> list[str]:
        """Texts of those that have none."""
        return [content_of(token) for token in further_tokens(self.config)]

    @property
    def extra_special_tokens_ids(self) -> list[int | None]:
        """Ids of those that have none."""
        return [self._id_of(token) for token in self.extra_special_tokens]

    additional_special_tokens = extra_special_tokens
    additional_special_tokens_ids = extra_special_tokens_ids

    @property
    def all_special_tokens(self) -> list[str]:
        """Texts of all special tokens, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int | None]:
        """Ids of all special tokens."""
        return [self._id_of(token) for token in self.all_special_tokens]

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Sequence[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Add tokens to the vocabulary; those that are new get the next ids.

        A model needs rows for these: `model.resize_token_embeddings(len(tokenizer))`.

        Args:
            new_tokens: one or several.
            special_tokens: whether they are special, and so left out by decoding.

        Returns:
            How many were new.

        Raises:
            InputError: one is no token.
        """
        tokens: Any = new_tokens if isinstance(new_tokens, list | tuple) else [new_tokens]
        added = self._add([_checked(token) for token in tokens], special_tokens)
        self._forget_tokens()
        return added

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Any],
        replace_extra_special_tokens: bool = True,
    ) -> int:
        """Name special tokens; those that are new get the next ids.

        A model needs rows for these: `model.resize_token_embeddings(len(tokenizer))`.

        Args:
            special_tokens_dict: tokens by name, as in `{"pad_token": "<pad>"}`, and as
                `extra_special_tokens` (or `additional_special_tokens`) a list of further ones.
            replace_extra_special_tokens: whether the further ones take the place of those that
                there were, or come after them.

        Returns:
            How many were added.

        Raises:
            InputError: there is no such name, or one is no token.
        """
        named = dict(fitted("special_tokens_dict", special_tokens_dict, dict))
        lists = [named.pop(name) for name in FURTHER_TOKENS if name in named]
        further = [token for each in lists for token in fitted(FURTHER_TOKENS[0], each, list)]
        if unknown := ", ".join(sorted(map(str, named.keys() - set(SPECIAL_TOKENS)))):
            known = f"{', '.join(SPECIAL_TOKENS)} and {FURTHER_TOKENS[0]}"
            raise InputError(f"no special token is called {unknown}, but {known}")
        if not replace_extra_special_tokens:
            further = [token for token in further if str(token) not in self.extra_special_tokens]
        added = self._add([_checked(token) for token in (*named.values(), *further)], True)
        if further:
            kept = [] if replace_extra_special_tokens else further_tokens(self.config)
            for name in FURTHER_TOKENS:
                self.config.pop(name, None)
            self.config[FURTHER_TOKENS[0]] = [*kept, *map(plain_token, further)]
        for name, token in named.items():
            self._set_special_token(name, token)
        self._forget_tokens()
        return added

    def _known_token(self, name: str, index: int | None) -> str | None:
        if index is None:
            return None
        token = self._token_of(fitted(name, index, int))
        if token is None or self._id_of(token) != index:
            raise InputError(
                f"{name} is {index}, but this tokenizer has tokens 0 to {len(self) - 1}"
            )
        return token

    def __len__(self) -> int:
        raise NotImplementedError

    def _set_special_token(self, name: str, token: str | AddedToken | None) -> None:
        if not isinstance(token, str | AddedToken | None):
            raise InputError.must_be(name, token, "text or an AddedToken")
        if token is not None and self._id_of(str(token)) is None:
            remedy = f'add_special_tokens({{"{name}": "{token}"}})'
            raise InputError(f"{str(token)!r} is no token of this tokenizer; to add it: {remedy}")
        self.config[name] = plain_token(token)
        self._forget_tokens()

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Ids of a text, or of a pair of them, with the special tokens around."""
        texts = {"A": _row(token_ids_0), "B": _row(token_ids_1 or [])}
        layout = self._layout(token_ids_1 is not None)
        parts = (texts[part] if isinstance(part, str) else [part] for part, _ in layout)
        return [index for part in parts for index in part]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for each special token, 0 for each token of a text.

        Args:
            token_ids_0, token_ids_1: ids of a text, and of the second of a pair.
            already_has_special_tokens: the first are ids of all; else the mask is that of
                `build_inputs_with_special_tokens`.

        Raises:
            InputError: ids of all, and a second text.
        """
        first = _row(token_ids_0)
        if fitted("already_has_special_tokens", already_has_special_tokens, bool):
            if token_ids_1 is not None:
                raise InputError("already_has_special_tokens: there cannot be a second text")
            special = set(self.all_special_ids)
            return [int(index in special) for index in first]
        lengths = {"A": len(first), "B": len(_row(token_ids_1 or []))}
        layout = self._layout(token_ids_1 is not None)
        parts = ([0] * lengths[part] if isinstance(part, str) else [1] for part, _ in layout)
        return [each for part in parts for each in part]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """0 for each token of a text with those around it, 1 for what a second text adds."""
        lengths = {"A": len(_row(token_ids_0)), "B": len(_row(token_ids_1 or []))}
        layout = self._layout(token_ids_1 is not None)
        counts = [lengths[part] if isinstance(part, str) else 1 for part, _ in layout]
        return [kind for (_, kind), n in zip(layout, counts, strict=True) for _ in range(n)]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens encoding puts around a text, or a pair."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def convert_tokens_to_ids(self, tokens: str | Sequence[Any]) -> Any:
        """Id of a token, or ids of several, or of rows of them; the unknown token's for what is
        none.

        Raises:
            InputError: one is no text.
        """
        if not isinstance(tokens, str):
            if not isinstance(tokens, list | tuple):
                raise InputError(f"a token is text, not {type(tokens).__name__}")
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._id_of(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several, as they stand in the vocabulary.

        Args:
            ids: one integer, or a row of them.
            skip_special_tokens: leave these out, of a row.

        Raises:
            InputError: they are no ids.
        """
        row = _row(ids)
        if isinstance(ids, Real) or getattr(ids, "ndim", None) == 0:
            return self._token_of(row[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._token_of(index) for index in row if index not in skipped]


def _checked(token: Any) -> str | AddedToken:
    if not isinstance(token, str | AddedToken) or not str(token):
        raise InputError(f"tokens have to be text or AddedToken: {token!r}")
    try:
        str(token).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"a token has a lone surrogate: {error}") from error
    return token
