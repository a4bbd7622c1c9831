"""A decoder with a head: a causal language model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..distributed.memory import clear_cache
from ..errors import InputError
from ..fields import fitted
from ..generation.config import Count
from ..layers.cache import CACHE_OPTIONS, KVCache, LeftPadding
from ..layers.model_output import ModelOutput, can_return_tuple
from ..layers.token_ids import as_mlx
from .base import PretrainedModel
from .decoder import DecoderModel, DecoderOptions
from .decoder_config import DecoderConfig
from .initialization import init_weights
from .loss import causal_lm_loss

PREFILL_STEP_SIZE = 2048  #: positions of a prompt that are fed at once
PREFILL_OPTIONS = ("prefill_step_size", "prompt_progress_callback")


@dataclass(eq=False)
class CausalLMOutputWithPast(ModelOutput):
    """What a causal language model returns; the rest is as in `BaseModelOutputWithPast`.

    loss: when labels were given.
    logits: (batch, kept positions, vocab_size).
    """

    loss: mx.array | None = None
    logits: mx.array | None = None
    past_key_values: Sequence[KVCache] | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


class CausalLM(PretrainedModel):
    """Base of the causal language models; a family names its `model_class` and `config_class`."""

    model_class: ClassVar[type[DecoderModel]]
    base_model_prefix = "model."
    cache_options = CACHE_OPTIONS
    generation_inputs = ("input_ids", "attention_mask", "inputs_embeds", *PREFILL_OPTIONS)

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.logits_divisor = config.scales.logits_divisor
        self.model = self.model_class(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        init_weights(self)

    @can_return_tuple
    def __call__(
        self,
        input_ids: mx.array | None = None,
        attention_mask: mx.array | None = None,
        position_ids: mx.array | None = None,
        past_key_values: Sequence[KVCache] | None = None,
        inputs_embeds: mx.array | None = None,
        labels: mx.array | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | mx.array = 0,
        *,
        num_items_in_batch: int | mx.array | None = None,
        **options: Unpack[DecoderOptions],
    ) -> CausalLMOutputWithPast:
        """Run the model; what is not described here is as in `DecoderModel`.

        Args:
            labels: (batch, length), -100 where there is no loss.
            logits_to_keep: see `kept_positions`.
            num_items_in_batch: what the sum of the losses is divided by, where a batch is one part
                of several; by default how many labels count.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            return_dict=True,
            **options,
        )
        logits = self.logits(kept_positions(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = causal_lm_loss(logits, labels, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def logits(self, hidden_states: mx.array) -> mx.array:
        """(…, hidden_size) -> (…, vocab_size)."""
        if self.config.tie_word_embeddings:
            logits = self.model.embed_tokens.as_linear(hidden_states)
        else:
            logits = self.lm_head(hidden_states)
        return logits if self.logits_divisor == 1.0 else logits / self.logits_divisor

    def get_decoder(self) -> DecoderModel:
        """See `PretrainedModel.get_decoder`."""
        return self.model

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return max(self.config.max_position_embeddings, self.model.rope.context_length)

    def make_cache(self, left_padding: LeftPadding = None, **options: Any) -> list[KVCache]:
        """See `DecoderModel.make_cache`."""
        return self.model.make_cache(left_padding, **options)

    def prefill(
        self,
        input_ids: mx.array,
        cache: Sequence[KVCache],
        *,
        inputs_embeds: mx.array | None = None,
        logits_to_keep: Sequence[Sequence[int]] | None = None,
        prefill_step_size: int = PREFILL_STEP_SIZE,
        prompt_progress_callback: Callable[[int, int], None] | None = None,
    ) -> mx.array:
        """Feed a prompt.

        Args:
            input_ids: (batch, length).
            cache: extended in place.
            inputs_embeds: (batch, length, hidden_size) to feed instead.
            logits_to_keep: for each row the positions in it after which logits are wanted, equally
                many; by default the last. The first of them ends the prompt: what is behind it is a
                draft of the answer.
            prefill_step_size: positions that are fed at once, to bound a long prompt's memory.
            prompt_progress_callback: called with (positions done, all of them) after each part.

        Returns:
            Logits of the tokens after these positions, (batch, kept, vocab_size).

        Raises:
            InputError: `prefill_step_size` is not positive, or the cache is of another model, or of
                more or fewer rows.
        """
        prefill_step_size = fitted("prefill_step_size", prefill_step_size, Count)
        rows, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        self.model.check_cache(cache, rows)
        kept = logits_to_keep or [[length - 1]] * rows
        ends = [row[0] + 1 for row in kept]
        cache[0].prompt_lengths = cache[0].offset + mx.array(ends)
        first = min(map(min, kept))
        states: list[mx.array] = []  # from position `first` on
        for start in range(0, length, prefill_step_size):
            done = min(start + prefill_step_size, length)
            if inputs_embeds is None:
                embeds = self.model.embed(input_ids[:, start:done])
            else:
                embeds = inputs_embeds[:, start:done]
            x = self.model.run_layers(embeds, cache)
            if done > first:
                states.append(x[:, max(0, first - start) :])
            if done < length or prompt_progress_callback is not None:
                mx.eval([layer.state for layer in cache])
                clear_cache()
            if prompt_progress_callback is not None and start < max(ends):
                prompt_progress_callback(min(done, max(ends)), max(ends))
        places = mx.array(kept) - first
        x = mx.take_along_axis(mx.concatenate(states, axis=1), places[..., None], axis=1)
        return self.logits(x)

    def step(self, tokens: mx.array, cache: Sequence[KVCache]) -> mx.array:
        """Feed tokens (batch, n) after what is in the cache; the logits after each of them,
        (batch, n, vocab_size)."""
        return self.logits(self.model.run_layers(self.model.embed(tokens), cache))


def kept_positions(states: mx.array, logits_to_keep: Any) -> mx.array:
    """The states (batch, length, hidden_size) of which logits are wanted.

    Args:
        logits_to_keep: how many of the last positions, 0 for all; or which, (kept,) for all rows or
            (batch, kept), negative ones counted from the end; or a boolean (batch, length), whose
            true positions make one row.

    Returns:
        (batch, kept, hidden_size), or of booleans (kept, hidden_size).

    Raises:
        InputError: it is something else, or there is no such position.
    """
    keep = as_mlx(logits_to_keep)
    batch, length, _ = states.shape
    if isinstance(keep, list | tuple | range):
        keep = mx.array(fitted("logits_to_keep", list(keep), list[int]), mx.int32)
    elif getattr(keep, "ndim", None) == 0:
        keep = keep.item()
    if isinstance(keep, int) and keep >= 0:
        return states[:, -keep:]
    if isinstance(keep, mx.array) and keep.dtype == mx.bool_ and keep.shape == (batch, length):
        places = np.flatnonzero(np.array(keep))
        return states.flatten(0, 1)[mx.array(places.astype(np.int32))]
    if not isinstance(keep, mx.array) or not mx.issubdtype(keep.dtype, mx.integer):
        rule = "a number of positions, or an array of which"
        raise InputError.must_be("logits_to_keep", logits_to_keep, rule)
    if keep.size and not -length <= mx.min(keep).item() <= mx.max(keep).item() < length:
        raise InputError(f"logits_to_keep names positions that a text of {length} has not")
    if keep.ndim == 1:
        return states[:, keep]
    if keep.ndim != 2 or len(keep) != batch:
        shapes = f"{keep.shape}, but must be (kept,) or ({batch}, kept)"
        raise InputError(f"logits_to_keep is {shapes}")
    return mx.take_along_axis(states, (keep % length)[..., None], axis=1)
