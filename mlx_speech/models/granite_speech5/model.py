"""Granite Speech 5.0 TurboCTC: the encoder and its CTC head, https://huggingface.co/ibm-granite."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...fields import fitted
from ...generation.checks import refuse_all
from ...layers.model_output import ModelOutput, can_return_tuple
from ..base import PretrainedModel
from ..conformer_window import Halos
from ..initialization import init_weights
from ..loss import ctc_loss
from .config import GraniteSpeech5CTCConfig
from .encoder import GraniteSpeech5Encoder, encoder_to_checkpoint, sanitize_encoder
from .encoder_stream import GraniteSpeech5EncoderStream
from .encoder_window import encode_window


@dataclass(eq=False)
class CTCOutput(ModelOutput):
    """What the model returns.

    loss: when labels were given.
    logits: (batch, frames, vocab_size), 12.5 frames a second.
    hidden_states, attentions: as the encoder's.
    """

    loss: mx.array | None = None
    logits: mx.array | None = None
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: tuple[mx.array, ...] | None = None


@dataclass(eq=False)
class GraniteSpeech5CTCGenerateOutput(ModelOutput):
    """What `generate` returns on request.

    sequences: (batch, frames), the likeliest label of each frame.
    logits, hidden_states: as a call gives them.
    """

    sequences: mx.array | None = None
    logits: mx.array | None = None
    attentions: tuple[mx.array, ...] | None = None
    hidden_states: tuple[mx.array, ...] | None = None


class GraniteSpeech5ForCTC(PretrainedModel):
    """A speech encoder whose CTC head writes the text."""

    config_class = GraniteSpeech5CTCConfig
    main_input_name = "input_features"
    computed_tensors = (*PretrainedModel.computed_tensors, "num_batches_tracked")
    tied_head = "ctc_head."
    tied_embeddings = "encoder.out."
    generation_inputs = ("input_features", "attention_mask")

    def __init__(self, config: GraniteSpeech5CTCConfig):
        super().__init__(config)
        self.encoder = GraniteSpeech5Encoder(config.encoder_config)
        if not config.tie_word_embeddings:
            self.ctc_head = nn.Linear(config.encoder_config.hidden_size, config.vocab_size)
        init_weights(self)

    @can_return_tuple
    def __call__(
        self,
        input_features: mx.array,
        attention_mask: mx.array | None = None,
        labels: mx.array | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> CTCOutput:
        """Run the model.

        Args:
            input_features: (batch, frames, 4 * num_mel_bins), 50 frames a second.
            attention_mask: (batch, frames), ones and then zeros at the padding.
            labels: (batch, length) what is said in each recording, filled up with -100 or blanks.
            output_hidden_states, output_attentions: as of the encoder.

        Raises:
            InputError: arguments have the wrong shape, or the model does not know a label.
            UnsupportedOptionError: attention weights are asked for.
        """
        encoded = self.encoder(
            input_features,
            attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.logits(encoded.last_hidden_state)
        loss = None
        if labels is not None:
            config = self.config
            loss = ctc_loss(
                logits,
                labels,
                encoded.attention_mask.sum(axis=1),
                blank=config.pad_token_id,
                reduction=config.ctc_loss_reduction,
                zero_infinity=config.ctc_zero_infinity,
            )
        return CTCOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)

    def logits(self, hidden_states: mx.array) -> mx.array:
        """What the head says to the encoder's frames: (…, hidden_size) -> (…, vocab_size)."""
        head = self.encoder.out if self.config.tie_word_embeddings else self.ctc_head
        return head(hidden_states)

    def generate(  # type: ignore[override]
        self,
        input_features: mx.array,
        attention_mask: mx.array | None = None,
        return_dict_in_generate: bool | None = None,
        *,
        output_hidden_states: bool | None = None,
        **options: Any,
    ) -> mx.array | GraniteSpeech5CTCGenerateOutput:
        """The likeliest label of each frame, (batch, frames), blanks at the padding.

        Labels of several frames in a row, and blanks, are still in it, as in transformers: the
        tokenizer's `decode` makes one of the former and drops the latter.

        Args:
            return_dict_in_generate: return logits, too, and hidden states on request.
            options: there are none.

        Raises:
            InputError: as a call.
            UnsupportedOptionError: an option is of a decoder.
        """
        refuse_options(options)
        shown = {"output_hidden_states": output_hidden_states, "return_dict": True}
        encoded = self.encoder(input_features, attention_mask, **shown)
        logits = self.logits(encoded.last_hidden_state)
        sequences = encoded.attention_mask
        if sequences.size:  # MLX refuses to reduce what has no frame
            blank = self.config.pad_token_id
            sequences = mx.where(sequences, mx.argmax(logits, axis=-1), blank)
        if not fitted("return_dict_in_generate", return_dict_in_generate, bool | None):
            return sequences
        return GraniteSpeech5CTCGenerateOutput(
            sequences=sequences, logits=logits, hidden_states=encoded.hidden_states
        )

    def audio_stages(self, input_features: mx.array) -> Iterator[tuple[str, mx.array]]:
        """What becomes of an unpadded recording on its way to the labels, stage by stage."""
        yield "encoder", self.encoder(input_features, return_dict=True).last_hidden_state

    def logits_along(self, inputs: dict[str, Any], tokens: list[int]) -> mx.array:
        """See `PretrainedModel.logits_along`: of each frame, whatever the text."""
        return self(**inputs).logits

    def encode_stream(self) -> GraniteSpeech5EncoderStream:
        """The encoder for one recording that comes part by part."""
        return GraniteSpeech5EncoderStream(self.encoder)

    def encode_window(
        self, features: mx.array, halos: Halos = (), places: Sequence[int] = ()
    ) -> tuple[mx.array, list[Halos]]:
        """The encoder over a part of audio that is still coming in; see `encoder_window`."""
        return encode_window(self.encoder, features, halos, places)

    @classmethod
    def sanitize(cls, weights, config):
        """See `PretrainedModel.sanitize`."""
        return sanitize_encoder(super().sanitize(weights, config))

    @classmethod
    def to_checkpoint(cls, weights, config):
        """See `PretrainedModel.to_checkpoint`."""
        return encoder_to_checkpoint(weights)


def refuse_options(options: Mapping[str, Any]) -> None:
    """See `refuse_all`."""
    refuse_all(options, "Granite Speech 5.0 TurboCTC writes what its CTC head says")
