"""A checkpoint's tokenizer: text to ids and back, and its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer as Backend

from ..errors import CheckpointError, InputError
from ..models.config import read_json
from .chat_template import find_chat_template, render_chat


class Tokenizer:
    """tokenizer.json, with the special tokens and the chat template that stand beside it.

    Args:
        backend: what does the work.
        config: the parsed tokenizer_config.json.
        chat_template: Jinja source, if the checkpoint has one.
    """

    def __init__(self, backend: Backend, config: dict[str, Any], chat_template: str | None = None):
        self.backend = backend
        self.config = config
        self.chat_template = chat_template

    @classmethod
    def from_pretrained(cls, path_or_repo, *, name: str | None = None) -> Tokenizer:
        """Read the tokenizer of a local folder or a Hugging Face repository.

        Raises:
            CheckpointError: there is no readable tokenizer.json.
        """
        from ..hub import resolve_checkpoint

        folder = resolve_checkpoint(path_or_repo)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(f"{folder}: no tokenizer.json here")
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise CheckpointError(f"{file}: not a readable tokenizer: {error}") from error
        config = read_json(folder, "tokenizer_config.json", required=False)
        return cls(backend, config, find_chat_template(folder, config))

    def special_token(self, name: str) -> str | None:
        """The string of e.g. `eos_token`, or None."""
        token = self.config.get(name)
        return token.get("content") if isinstance(token, dict) else token

    @property
    def pad_token_id(self) -> int:
        """Id that fills shorter rows; that of another special token where there is none."""
        for name in ("pad_token", "eos_token", "bos_token"):
            token = self.special_token(name)
            if token is not None and (found := self.backend.token_to_id(token)) is not None:
                return found
        return 0

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the tokenizer adds by itself."""
        return self.backend.encode(text).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def is_open(self, token: int) -> bool:
        """Whether a token after this one may yet change the text: see `TextStream`.

        So it is with bytes that stand for rare characters: where one of a run of them fits no
        character, `decode` gives up the whole run. A special token, skipped, does not end one.
        """
        return token in self._open_tokens

    @cached_property
    def _open_tokens(self) -> set[int | None]:
        special = {i for i, t in self.backend.get_added_tokens_decoder().items() if t.special}
        return special | {self.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}

    def __call__(self, text: str | Sequence[str]) -> dict[str, mx.array]:
        """Encode a batch: `input_ids` and `attention_mask`, (batch, length), padded on the left."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.encode(t) for t in texts]
        longest = max(len(row) for row in rows)
        fill = self.pad_token_id
        ids = [[fill] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return {"input_ids": mx.array(ids), "attention_mask": mx.array(mask)}

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages: `{"role": ..., "content": "text"}`.
            add_generation_prompt: end with what begins the assistant's answer.
            variables: further ones that the template knows.

        Raises:
            InputError: the checkpoint has no chat template, or its template refuses the messages.
        """
        if self.chat_template is None:
            raise InputError("this checkpoint has no chat template; give the prompt as plain text")
        special = {n: self.special_token(n) or "" for n in ("bos_token", "eos_token", "pad_token")}
        return render_chat(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            **{**special, **variables},
        )
