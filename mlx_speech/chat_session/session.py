"""`ChatSession`: a conversation whose cache lives from turn to turn."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, InputError
from ..fields import fitted
from ..generation.checks import check_generates
from ..generation.prefix_cache import PrefixCache
from ..generation.protocols import GenerativeModel
from ..generation.text import GenerationResponse, prompt_ids, stream_generate
from ..layers.cache import KVCache
from .chat_model import ChatModel, OwnChatModel, as_chat_model

if TYPE_CHECKING:
    from ..transcription.transcript import Transcript

Replies = Generator[GenerationResponse, None, None]  #: the pieces of a reply, as they come
REPLY_TOKENS = 512  #: limit on a reply, where nothing is said and the context has room


class ChatSession:
    """A conversation with a model.

    Each turn feeds only what the cache does not hold yet: the new message, not the history. So it
    does to a `draft_model`.

    Args:
        model, processor: what `load` returned. A speech model can `transcribe` as well.
        chat_model: what replies in its place: a folder or a repository of any text model that this
            package or mlx-lm can run, or what `mlx_speech.load` or `mlx_lm.load` returned. Then
            any speech model will do.
        system: a first message that sets the tone.
        options: of every reply, as for `mlx_speech.stream_generate`; those of the cache
            (`max_kv_size`, `kv_bits`, …) hold for the conversation.

    Raises:
        CheckpointError: the `chat_model` cannot be loaded.
        InputError: the checkpoint has no chat template.
        UnsupportedOptionError: the model generates nothing.
    """

    def __init__(
        self,
        model: GenerativeModel,
        processor: Any,
        *,
        chat_model: Any = None,
        system: str | None = None,
        **options: Any,
    ):
        self._chat: ChatModel
        if chat_model is None:
            self._chat = OwnChatModel(model, processor)
        else:
            self._chat = as_chat_model(chat_model)
        self.model = model
        self.processor = processor
        self.system = system
        own = options.keys() & set(self._chat.model.cache_options)
        self._cache_options = {name: options.pop(name) for name in own}
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages: list[dict[str, str]] = []  #: what was said, `{"role": ..., "content": ...}`
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})
        self._start_over()

    def _start_over(self) -> None:
        self._cache = PrefixCache(self._chat.model.make_cache(**self._cache_options))
        self._draft_model: GenerativeModel | None = None
        self._draft_cache: Sequence[KVCache] = ()  # no more than the other

    def transcribe(self, audio: Any, **options: Any) -> Transcript:
        """What is said in a recording, see `mlx_speech.transcribe`, adapter on. It becomes part of
        the conversation only when it is sent.

        Raises:
            UnsupportedOptionError: the model is not a speech model.
        """
        from ..transcription.pipeline import transcribe

        return transcribe(audio, (self.model, self.processor), **options)

    listen = transcribe  #: the same by its older name

    def send(self, text: str, **options: Any) -> str:
        """The reply to a message; options as for the session."""
        return "".join(response.text for response in self.stream(text, **options))

    def stream(self, text: str, **options: Any) -> Replies:
        """As `send`, but yields the reply as it comes.

        A reply that is not taken to its end (the iterator is closed, or something is raised
        meanwhile) stays in the conversation as far as it came.

        Raises:
            ContextLengthError: the conversation has become too long; it is then as it was before.
            InputError: an option is wrong.
        """
        options = {**self.options, **options}
        if "assistant_model" in options:
            options["draft_model"] = options.pop("assistant_model")
        self._chat.check(options)
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = prompt_ids(self._chat.tokenizer, messages)
        self._follow(self._cache.trim_to(self._cache.common(ids)))
        if options.get("max_new_tokens") is None and options.get("max_length") is None:
            room = self._chat.model.context_length - len(ids)
            bounded = self._cache.layers[0].max_size is not None
            options["max_new_tokens"] = REPLY_TOKENS if bounded else max(1, min(REPLY_TOKENS, room))
        options["past_key_values"] = self._cache.layers
        if (draft_model := options.get("draft_model")) is not None:
            check_generates(draft_model)
            if draft_model is not self._draft_model:
                self._draft_model, self._draft_cache = draft_model, draft_model.make_cache()
            options["draft_past_key_values"] = self._draft_cache
        try:
            responses: Any = stream_generate(self._chat.model, self._chat.tokenizer, ids, **options)
        except BaseException:
            # a part of the prompt may be in already
            self._follow(self._cache.settle(self._cache.keys))
            raise
        return self._reply(responses, messages, ids)

    def _reply(self, responses: Replies, messages: list[dict[str, str]], ids: list[int]) -> Replies:
        reply, tokens = "", list(ids)
        self.messages = messages
        try:
            for response in responses:
                reply += response.text
                tokens.append(response.token)
                yield response
        finally:
            responses.close()
            self.messages = [*messages, {"role": "assistant", "content": reply}]
            # nobody saw the token of a step that was interrupted, but the cache may hold it
            self._follow(self._cache.settle(tokens))

    def _follow(self, trimmed: bool) -> None:
        """After the cache was trimmed, or could not be."""
        if not trimmed:
            self._start_over()
        for layer in self._draft_cache:
            layer.trim(max(0, layer.length - len(self._cache.keys)))

    def save(self, path: str | os.PathLike, *, overwrite: bool = True) -> None:
        """Write the conversation and its cache to a file.

        Args:
            overwrite: whether a file that is there may be replaced.

        Raises:
            InputError: the file cannot be written, or there is one that may not be replaced.
        """
        try:
            metadata = {"messages": json.dumps(self.messages), "ids": json.dumps(self._cache.keys)}
        except (TypeError, ValueError) as error:
            raise InputError(f"the messages are not plain data: {error}") from error
        self._chat.save(path, self._cache.layers, metadata, overwrite=overwrite)

    def load(self, path: str | os.PathLike) -> None:
        """Go on with a conversation that `save` wrote; nothing changes if it cannot be read.

        Raises:
            CheckpointError: the file is none of `save`'s, or of another model.
            InputError: there is no such file.
        """
        cache, metadata = self._chat.load(path)
        if not {"messages", "ids"} <= metadata.keys():
            raise CheckpointError(f"{path}: a prompt cache, but of no conversation")
        try:
            messages = fitted("messages", json.loads(metadata["messages"]), list[dict])
            ids = fitted("ids", json.loads(metadata["ids"]), list[int])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not a whole conversation") from error
        rows = {part.shape[0] for layer in cache for part in layer.state}
        known = all(0 <= token < self._chat.model.vocab_size for token in ids)
        if len(ids) > cache[0].length or not known or rows - {1}:
            raise CheckpointError(f"{path}: not a whole conversation")
        self._start_over()
        self._cache, self.messages = PrefixCache(cache, ids), messages
