"""A decoder with a head: a causal language model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import mlx.core as mx
import mlx.nn as nn

from ..fields import fitted
from ..generation.config import Count
from ..generation.search import Step
from ..layers.cache import CACHE_OPTIONS, KVCache, LeftPadding, make_cache
from .base import ModelOutput, PretrainedModel
from .decoder import DecoderConfig, DecoderInputs, DecoderModel
from .loss import causal_lm_loss

PREFILL_STEP_SIZE = 2048  #: positions of a prompt that are fed at once
PREFILL_OPTIONS = ("prefill_step_size", "prompt_progress_callback")


@dataclass(kw_only=True)
class CausalLMOutput(ModelOutput):
    """What a causal language model returns: `ModelOutput` and these.

    logits: (batch, kept positions, vocab_size).
    loss: mean cross-entropy, when labels were given.
    """

    logits: mx.array
    loss: mx.array | None = None


class CausalLM(PretrainedModel):
    """Base of the causal language models; a family names its `model_class` and `config_class`."""

    model_class: ClassVar[type[DecoderModel]]
    cache_options = CACHE_OPTIONS
    generation_inputs = ("input_ids", "attention_mask", *PREFILL_OPTIONS)

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.logits_divisor = config.scales.logits_divisor
        self.model = self.model_class(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        *,
        labels: mx.array | None = None,
        logits_to_keep: int = 0,
        **inputs: Unpack[DecoderInputs],
    ) -> CausalLMOutput:
        """Run the model; what is not described here is as in `DecoderModel`.

        Args:
            labels: (batch, length), -100 where there is no loss.
            logits_to_keep: number of last positions to compute logits for; 0 means all.
        """
        beside = dict(vars(self.model(input_ids, **inputs)))
        logits = self.logits(beside.pop("last_hidden_state")[:, -logits_to_keep:])
        loss = None if labels is None else causal_lm_loss(logits, labels)
        return CausalLMOutput(logits=logits, loss=loss, **beside)

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(…, hidden_size) -> (…, vocab_size)."""
        if self.config.tie_word_embeddings:
            logits = self.model.embed_tokens.as_linear(hidden_states)
        else:
            logits = self.lm_head(hidden_states)
        return logits if self.logits_divisor == 1.0 else logits / self.logits_divisor

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return self.config.max_position_embeddings

    def make_cache(self, left_padding: LeftPadding = None, **options: Any) -> list[KVCache]:
        """An empty cache, one entry a layer; see `mlx_speech.layers.cache.make_cache`."""
        return make_cache(self.config.num_hidden_layers, left_padding, **options)

    def prefill(
        self,
        input_ids: mx.array,
        cache: Sequence[KVCache],
        *,
        inputs_embeds: mx.array | None = None,
        prefill_step_size: int = PREFILL_STEP_SIZE,
        prompt_progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[mx.array, Step]:
        """Feed a prompt.

        Args:
            input_ids: (batch, length).
            cache: extended in place.
            inputs_embeds: (batch, length, hidden_size) to feed instead.
            prefill_step_size: positions that are fed at once, to bound a long prompt's memory.
            prompt_progress_callback: called with (positions done, all of them) after each part.

        Returns:
            The next token's logits (batch, vocab_size), and the function that feeds tokens
            (batch, n) and gives the logits after each, (batch, n, vocab_size).

        Raises:
            InputError: `prefill_step_size` is not positive.
        """
        prefill_step_size = fitted("prefill_step_size", prefill_step_size, Count)
        length = input_ids.shape[1]
        cache[0].prompt_length = cache[0].length + length
        for start in range(0, length, prefill_step_size):
            done = min(start + prefill_step_size, length)
            ids = input_ids[:, start:done] if inputs_embeds is None else None
            embeds = None if inputs_embeds is None else inputs_embeds[:, start:done]
            logits = self(ids, inputs_embeds=embeds, past_key_values=cache, logits_to_keep=1).logits
            if done < length or prompt_progress_callback is not None:
                mx.eval([layer.state for layer in cache])
                mx.clear_cache()
            if prompt_progress_callback is not None:
                prompt_progress_callback(done, length)

        def step(tokens: mx.array) -> mx.array:
            return self(tokens, past_key_values=cache).logits

        return logits[:, -1], step
