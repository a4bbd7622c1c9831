"""Conversation -> prompt -> answer, on the engine's thread: of a prompt only what is new is fed."""

import weakref
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from ..chat_session import REPLY_TOKENS
from ..chat_session.chat_model import chat_tokenizer
from ..errors import MlxSpeechError
from ..generation.prefix_cache import Key, PrefixCache, PrefixCachePool
from ..generation.protocols import GenerativeModel, TextTokenizer
from ..generation.text import GenerationResponse, prompt_ids, stream_generate
from ..processing.chat_parts import joined, recordings_of
from ..processing.granite_speech import GraniteSpeechProcessor
from .chat_audio import Conversation
from .chat_request import ChatRequest
from .errors import RequestError

# No text has so many characters a token. Encoding one that has would keep all others waiting.
_MOST_CHARACTERS = 32
_KEPT_CACHES, _KEPT_BYTES = 16, 2 << 30


class AudioKey(NamedTuple):
    """The `number`-th of the tokens that stand for a recording, which all have the same id."""

    digest: bytes
    number: int


class AdaptedKey(NamedTuple):
    """A token of a text with recordings: the adapter, which is on, makes another state of it."""

    token: int


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as a model takes it.

    ids: of its tokens.
    keys: what tells them from those of others, see `PrefixCache`.
    end_ids: tokens that end an answer.
    recordings: samples, (n,) each, in order.
    """

    tokenizer: TextTokenizer
    ids: list[int]
    keys: Sequence[Key]
    end_ids: tuple[int, ...]
    recordings: Sequence[mx.array] = ()

    @property
    def audio_tokens(self) -> int:
        """How many of its tokens stand for recordings."""
        return sum(isinstance(key, AudioKey) for key in self.keys)

    def key(self, token: int) -> Key:
        """That of a token of the answer."""
        return AdaptedKey(token) if self.recordings else token

    def whole(self, length: int) -> int:
        """The most positions up to `length` that have no recording in part."""
        key = self.keys[length]
        return length - key.number if isinstance(key, AudioKey) else length

    def recordings_from(self, position: int) -> Sequence[mx.array]:
        """Those that begin at a position or behind it."""
        before = (key for key in self.keys[:position] if isinstance(key, AudioKey))
        return self.recordings[sum(key.number == 0 for key in before) :]


def make_prompt(
    name: str, conversation: Conversation, model: GenerativeModel, processor: Any
) -> ChatPrompt:
    """The prompt for a conversation.

    Args:
        name: of the model.

    Raises:
        MlxSpeechError: the model's template refuses the messages.
        RequestError: the model does not chat, or takes no recordings in a chat; or the conversation
            is too long for it.
    """
    try:
        tokenizer = chat_tokenizer(model, processor)
    except MlxSpeechError as error:
        raise RequestError(f"{name} cannot chat: {error}", 400, "model") from None
    messages, end_ids = conversation.messages, model.generation_config.eos_token_ids
    characters = sum(len(message["content"]) for message in joined(messages, ""))
    if characters > _MOST_CHARACTERS * model.context_length:
        raise _too_long(model, f"{characters} characters")
    if not conversation.digests:
        ids = prompt_ids(tokenizer, joined(messages, ""))
        return ChatPrompt(tokenizer, ids, ids, end_ids)
    if not isinstance(processor, GraniteSpeechProcessor):
        raise RequestError(f"{name} takes no recordings in a chat", 400, "messages")
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    ids = inputs["input_ids"][0].tolist()
    sizes = inputs["input_features_mask"].sum(axis=1).tolist()
    sized = zip(conversation.digests, sizes, strict=True)
    audio = (AudioKey(digest, number) for digest, size in sized for number in range(size))
    is_audio = processor.audio_token_id
    keys = [next(audio) if token == is_audio else AdaptedKey(token) for token in ids]
    return ChatPrompt(tokenizer, ids, keys, end_ids, recordings_of(messages))


class ChatCaches:
    """What is kept of the latest conversations, for each model as long as it is loaded."""

    def __init__(self) -> None:
        self._pools: dict[int, PrefixCachePool] = {}

    def of(self, model: Any) -> PrefixCachePool:
        """Those of a model."""
        key = id(model)
        if key not in self._pools:
            self._pools[key] = PrefixCachePool(_KEPT_CACHES, _KEPT_BYTES)
            weakref.finalize(model, self._pools.pop, key).atexit = False
        return self._pools[key]


def answer(
    prompt: ChatPrompt, request: ChatRequest, caches: ChatCaches, model: Any, processor: Any
) -> Generator[GenerationResponse, None, None]:
    """The steps of an answer to a prompt, which is fed when this returns.

    Raises:
        MlxSpeechError: the prompt is wrong.
        RequestError: prompt and answer are too long for the model.
    """
    length, room = len(prompt.ids), model.context_length - len(prompt.ids)
    if room < (request.limit or 1):
        answered = f" and an answer of {request.limit}" if request.limit else ""
        raise _too_long(model, f"a prompt of {length} tokens{answered}")
    pool = caches.of(model)
    cache = pool.take(prompt.keys) or PrefixCache(model.make_cache())
    cache.trim_to(prompt.whole(cache.length))
    new = prompt.recordings_from(cache.length)
    responses = stream_generate(
        model,
        prompt.tokenizer,
        prompt.ids,
        past_key_values=cache.layers,
        max_new_tokens=request.limit or min(REPLY_TOKENS, room),
        **(processor(audio=new) if new else {}),
        **request.options,
    )
    return _steps(responses, prompt, cache, pool)


def _steps(
    responses: Generator[GenerationResponse, None, None],
    prompt: ChatPrompt,
    cache: PrefixCache,
    pool: PrefixCachePool,
) -> Generator[GenerationResponse, None, None]:
    keys = list(prompt.keys)
    try:
        for response in responses:
            keys.append(prompt.key(response.token))
            yield response
    finally:
        responses.close()
        if cache.settle(keys):
            pool.put(cache)


def _too_long(model: GenerativeModel, what: str) -> RequestError:
    message = f"the model's context of {model.context_length} tokens does not hold {what}"
    return RequestError(message, 400, "messages", "context_length_exceeded")
