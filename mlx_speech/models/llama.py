"""Llama: the plain decoder, as a language model and as a classifier of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from ..layers.cache import KVCache, LeftPadding
from ..layers.model_output import ModelOutput, can_return_tuple
from ..layers.token_ids import as_mlx
from .base import PretrainedModel
from .causal_lm import CausalLM
from .config import Epsilon
from .decoder import DecoderModel, DecoderOptions
from .decoder_config import DecoderConfig
from .initialization import init_weights
from .loss import sequence_classification_loss


@dataclass(kw_only=True)
class LlamaConfig(DecoderConfig):
    """Configuration of a Llama text decoder.

    pretraining_tp: how many devices the model was trained on; kept, and changes nothing.
    """

    model_type: ClassVar[str] = "llama"

    rms_norm_eps: Epsilon = 1e-6
    pretraining_tp: int | None = 1


class LlamaModel(DecoderModel):
    """Llama without a head."""

    config_class = LlamaConfig


class LlamaForCausalLM(CausalLM):
    """Llama, a causal language model."""

    config_class = LlamaConfig
    model_class = LlamaModel


@dataclass(eq=False)
class SequenceClassifierOutputWithPast(ModelOutput):
    """What a classifier of texts returns; the rest is as in `BaseModelOutputWithPast`.

    loss: when labels were given.
    logits: (batch, num_labels), of each row's last token that is not padding.
    """

    loss: mx.array | None = None
    logits: mx.array | None = None
    past_key_values: Sequence[KVCache] | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


class LlamaForSequenceClassification(PretrainedModel):
    """Llama with a head that gives one score for each label and text."""

    config_class = LlamaConfig
    base_model_prefix = "model."
    tied_head = None

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
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
        **options: Unpack[DecoderOptions],
    ) -> SequenceClassifierOutputWithPast:
        """Classify; what is not described here is as in `DecoderModel`.

        Each row is judged by its rightmost token that is not `pad_token_id`, wherever the padding
        is; by its last position where there are only embeddings, which do not tell.

        Args:
            labels: see `sequence_classification_loss`.

        Raises:
            InputError: several rows, but no `pad_token_id` to tell their ends by.
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
        states = outputs.last_hidden_state
        batch, length, _ = states.shape
        pad = self.config.pad_token_id
        if pad is None and batch > 1:
            raise InputError(
                f"a batch of {batch} needs pad_token_id in the configuration, to tell where each "
                "text ends"
            )
        last = mx.full((batch,), length - 1)
        if pad is not None and input_ids is not None:
            last = mx.argmax(mx.arange(length) * (as_mlx(input_ids) != pad), axis=-1)
        logits = self.score(states[mx.arange(batch), last])
        loss = None
        if labels is not None:
            loss = sequence_classification_loss(logits, labels, self.config.problem_type)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def get_decoder(self) -> LlamaModel:
        """See `PretrainedModel.get_decoder`."""
        return self.model

    def make_cache(self, left_padding: LeftPadding = None, **options: Any) -> list[KVCache]:
        """See `DecoderModel.make_cache`."""
        return self.model.make_cache(left_padding, **options)
