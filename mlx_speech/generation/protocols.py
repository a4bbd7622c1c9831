"""What strategies and text streaming ask of a model, its caches and its tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import mlx.core as mx

from .config import GenerationConfig

#: tokens (rows, n) -> logits after each of them (rows, n, vocab); advances the cache
Step = Callable[[mx.array], mx.array]


@runtime_checkable
class LayerCache(Protocol):
    """The cache of one attention layer; see `mlx_speech.layers.cache`."""

    length: int
    max_size: int | None

    @property
    def padded(self) -> bool: ...

    def trim(self, count: int) -> int: ...

    def reorder(self, rows: mx.array) -> None: ...


@runtime_checkable
class Streamer(Protocol):
    """What takes tokens as they are chosen, such as a `TextStreamer` of transformers."""

    def put(self, value: mx.array) -> None: ...

    def end(self) -> None: ...


@runtime_checkable
class Detokenizes(Protocol):
    """What turns ids into text."""

    def decode(self, ids: Any, *, skip_special_tokens: bool) -> str: ...


@runtime_checkable
class TextTokenizer(Detokenizes, Protocol):
    """What turns a prompt of any kind into ids, too."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def apply_chat_template(
        self, conversation: Sequence[dict[str, Any]], *, add_generation_prompt: bool, tokenize: bool
    ) -> Any: ...


class GenerativeModel(Protocol):
    """A language model that can be generated from; see `mlx_speech.models.base.PretrainedModel`."""

    config: Any
    folder: Path | None
    generation_config: GenerationConfig
    main_input_name: ClassVar[str]
    cache_options: ClassVar[tuple[str, ...]]
    generation_inputs: ClassVar[tuple[str, ...]]

    def parameters(self) -> dict[str, Any]: ...

    @property
    def vocab_size(self) -> int: ...

    def is_text_token(self, token: int) -> bool: ...

    def get_output_embeddings(self) -> Any: ...

    @property
    def logits_temperature(self) -> float: ...

    @property
    def context_length(self) -> int: ...

    def prepare_prompt(
        self, inputs: dict[str, Any], config: GenerationConfig
    ) -> tuple[mx.array, mx.array | None]: ...

    def make_cache(
        self, left_padding: Sequence[int] | None = None, **options: Any
    ) -> Sequence[Any]: ...

    def prefill(self, input_ids: mx.array, cache: Sequence[Any], **inputs: Any) -> mx.array: ...

    def step(self, tokens: mx.array, cache: Sequence[Any]) -> mx.array: ...
