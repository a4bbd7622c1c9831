"""Llama: the plain decoder, as a language model and as a classifier of texts."""

from dataclasses import dataclass
from typing import ClassVar, Unpack

import mlx.core as mx
import mlx.nn as nn

from ..errors import InputError
from .base import ModelOutput, PretrainedModel
from .causal_lm import CausalLM
from .config import Epsilon
from .decoder import DecoderConfig, DecoderInputs, DecoderModel


@dataclass(kw_only=True)
class LlamaConfig(DecoderConfig):
    """Configuration of a Llama text decoder.

    pretraining_tp: how many devices the model was trained on; kept, and changes nothing.
    """

    model_type: ClassVar[str] = "llama"

    rms_norm_eps: Epsilon = 1e-6
    pretraining_tp: int = 1


class LlamaModel(DecoderModel):
    config_class = LlamaConfig


class LlamaForCausalLM(CausalLM):
    config_class = LlamaConfig
    model_class = LlamaModel


@dataclass(kw_only=True)
class SequenceClassifierOutput(ModelOutput):
    """What a classifier of texts returns: `ModelOutput` and these.

    logits: (batch, num_labels), of each row's last token that is not padding.
    loss: when labels were given.
    """

    logits: mx.array
    loss: mx.array | None = None


class LlamaForSequenceClassification(PretrainedModel):
    config_class = LlamaConfig
    tied_head = None

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def __call__(
        self,
        input_ids: mx.array | None = None,
        *,
        labels: mx.array | None = None,
        **inputs: Unpack[DecoderInputs],
    ) -> SequenceClassifierOutput:
        """Classify; what is not described here is as in `DecoderModel`.

        Each row is judged by its rightmost token that is not `pad_token_id`, wherever the padding
        is; by its last position where there are only embeddings, which do not tell.

        Args:
            labels: (batch,) of integers for one label of several, (batch,) or (batch, 1) of
                floats for a regression with one output, else (batch, num_labels) of floats.

        Raises:
            InputError: several rows, but no `pad_token_id` to tell their ends by.
        """
        beside = dict(vars(self.model(input_ids, **inputs)))
        states = beside.pop("last_hidden_state")
        batch, length, _ = states.shape
        pad = self.config.pad_token_id
        if pad is None and batch > 1:
            raise InputError(
                f"a batch of {batch} needs pad_token_id in the configuration, to tell where each "
                "text ends"
            )
        last = mx.full((batch,), length - 1)
        if pad is not None and input_ids is not None:
            last = mx.argmax(mx.arange(length) * (input_ids != pad), axis=-1)
        logits = self.score(states[mx.arange(batch), last])
        loss = None if labels is None else self.loss(logits, labels)
        return SequenceClassifierOutput(logits=logits, loss=loss, **beside)

    def loss(self, logits: mx.array, labels: mx.array) -> mx.array:
        """Mean squared error, cross-entropy or binary cross-entropy, as `problem_type` or else
        the labels say."""
        problem = self.config.problem_type
        if problem is None and self.config.num_labels == 1:
            problem = "regression"
        elif problem is None and mx.issubdtype(labels.dtype, mx.integer):
            problem = "single_label_classification"
        logits = logits.astype(mx.float32)
        if problem == "single_label_classification":
            return nn.losses.cross_entropy(logits, labels.flatten(), reduction="mean")
        targets = labels.reshape(logits.shape).astype(mx.float32)
        if problem == "regression":
            return nn.losses.mse_loss(logits, targets)
        return nn.losses.binary_cross_entropy(logits, targets)
