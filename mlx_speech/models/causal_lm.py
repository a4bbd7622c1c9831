"""A decoder with a head: a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from ..layers.cache import CACHE_OPTIONS, KVCache, make_cache
from .base import PretrainedModel
from .decoder import DecoderConfig, DecoderModel, drop_rotary_buffers
from .loss import causal_lm_loss

#: positions of a prompt that are fed at once
PREFILL_STEP_SIZE = 2048


@dataclass
class CausalLMOutput:
    """What a causal language model returns.

    logits: (batch, kept positions, vocab_size).
    loss: mean cross-entropy, when labels were given.
    hidden_states: on request, as in `DecoderOutput`.
    past_key_values: the cache that was passed in, now longer.
    """

    logits: mx.array
    loss: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    past_key_values: Sequence[Any] | None = None


class CausalLM(PretrainedModel):
    """Base of the causal language models; a family names its `model_class` and `config_class`."""

    model_class: ClassVar[type[DecoderModel]]
    cache_options = CACHE_OPTIONS
    generation_inputs = (
        "input_ids",
        "attention_mask",
        "prefill_step_size",
        "prompt_progress_callback",
    )

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.logits_divisor = config.logits_divisor
        self.model = self.model_class(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        *,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[Any] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
    ) -> CausalLMOutput:
        """Run the model; what is not described here is as in `DecoderModel`.

        Args:
            labels: (batch, length), -100 where there is no loss.
            logits_to_keep: number of last positions to compute logits for; 0 means all.
        """
        output = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )
        logits = self.logits(output.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutput(
            logits=logits,
            loss=None if labels is None else causal_lm_loss(logits, labels),
            hidden_states=output.hidden_states,
            past_key_values=past_key_values,
        )

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(…, hidden_size) -> (…, vocab_size)."""
        if self.config.tie_word_embeddings:
            logits = self.model.embed_tokens.as_linear(hidden_states)
        else:
            logits = self.lm_head(hidden_states)
        return logits if self.logits_divisor == 1.0 else logits / self.logits_divisor

    @property
    def vocab_size(self) -> int:
        """Ids that a prompt may hold are below it."""
        return self.config.vocab_size

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self.config.max_position_embeddings

    def make_cache(
        self, left_padding: Sequence[int] | None = None, **options: Any
    ) -> list[KVCache]:
        """An empty cache, one entry a layer; see `mlx_speech.layers.cache.make_cache`."""
        return make_cache(self.config.num_hidden_layers, left_padding, **options)

    def prefill(
        self,
        input_ids: mx.array,
        cache: Sequence[Any],
        *,
        prefill_step_size: int = PREFILL_STEP_SIZE,
        prompt_progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[mx.array, Callable[[mx.array], mx.array]]:
        """Feed a prompt.

        Args:
            input_ids: (batch, length).
            cache: extended in place.
            prefill_step_size: positions that are fed at once, to bound a long prompt's memory.
            prompt_progress_callback: called with (positions done, all of them) after each part.

        Returns:
            The next token's logits (batch, vocab_size), and the function that feeds tokens
            (batch, n) and gives the logits after each, (batch, n, vocab_size).

        Raises:
            InputError: `prefill_step_size` is not positive.
        """
        logits = self.feed(cache, prefill_step_size, prompt_progress_callback, input_ids=input_ids)

        def step(tokens: mx.array) -> mx.array:
            return self(tokens, past_key_values=cache).logits

        return logits, step

    def feed(self, cache, step_size: int, progress: Callable | None, **prompt) -> mx.array:
        """Feed `input_ids` or `inputs_embeds` part by part; the logits after the last position."""
        if not isinstance(step_size, int) or step_size < 1:
            raise InputError.about(
                "{prefill_step_size} is {value!r}, but must be at least 1", value=step_size
            )
        ((name, whole),) = prompt.items()
        length = whole.shape[1]
        cache[0].prompt_length = cache[0].length + length
        for start in range(0, length, step_size):
            part = {name: whole[:, start : start + step_size]}
            logits = self(**part, past_key_values=cache, logits_to_keep=1).logits
            done = min(start + step_size, length)
            if done < length or progress is not None:
                mx.eval([layer.state for layer in cache])
                mx.clear_cache()
            if progress is not None:
                progress(done, length)
        return logits[:, -1]

    @staticmethod
    def sanitize(weights: dict[str, mx.array], config) -> dict[str, mx.array]:
        """Drops what is computed and a head that is tied but stored all the same."""
        weights = drop_rotary_buffers(weights)
        if config.tie_word_embeddings:
            weights = {k: v for k, v in weights.items() if not k.startswith("lm_head.")}
        return weights
