"""What Speech2Text returns; names and order of the fields are those of transformers.

Hidden states are the first layer's input, each layer's output, and the final norm's in place of the
last layer's. Attentions are each layer's weights, (rows, heads, positions, what is attended to).
Both are there on request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx

from ...errors import InputError
from ...layers.model_output import ModelOutput
from ...layers.token_ids import as_mlx

Layers = tuple[mx.array, ...]  #: an array for each layer


@dataclass(eq=False)
class BaseModelOutput(ModelOutput):
    """What the encoder returns.

    last_hidden_state: (recordings, subsampled frames, d_model), meaningless at the padding of a
        batch.
    """

    last_hidden_state: mx.array | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None

    @classmethod
    def of(cls, value: Any) -> "BaseModelOutput":
        """The same from a tuple of these fields, of which the first is enough, or a dictionary.

        Raises:
            InputError: it is neither, or has no last hidden state.
        """
        if value is None or isinstance(value, cls):
            return value or cls()
        names = [field.name for field in fields(cls)]
        if isinstance(value, Mapping):
            value = [value.get(name) for name in names]
        output = cls(*map(as_mlx, value[:3])) if isinstance(value, Sequence) else cls()
        if not isinstance(output.last_hidden_state, mx.array):
            rule = "what the encoder returned, or a tuple that begins with its last hidden state"
            raise InputError(f"encoder_outputs must be {rule}")
        return output


@dataclass(eq=False)
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """What the decoder returns.

    last_hidden_state: (rows, length, d_model).
    past_key_values: the cache, see `Speech2TextModel.make_cache`.
    attentions, cross_attentions: to its own positions, and to the recording.
    """

    last_hidden_state: mx.array | None = None
    past_key_values: Sequence[Any] | None = None
    hidden_states: Layers | None = None
    attentions: Layers | None = None
    cross_attentions: Layers | None = None


@dataclass(eq=False)
class Seq2SeqModelOutput(ModelOutput):
    """What `Speech2TextModel` returns: of the decoder and of the encoder, see there. The encoder's
    are None where only the cache held the recording."""

    last_hidden_state: mx.array | None = None
    past_key_values: Sequence[Any] | None = None
    decoder_hidden_states: Layers | None = None
    decoder_attentions: Layers | None = None
    cross_attentions: Layers | None = None
    encoder_last_hidden_state: mx.array | None = None
    encoder_hidden_states: Layers | None = None
    encoder_attentions: Layers | None = None


@dataclass(eq=False)
class Seq2SeqLMOutput(ModelOutput):
    """What `Speech2TextForConditionalGeneration` returns: as `Seq2SeqModelOutput`, but for these.

    loss: mean cross-entropy, where labels were given.
    logits: (rows, length, vocab_size).
    """

    loss: mx.array | None = None
    logits: mx.array | None = None
    past_key_values: Sequence[Any] | None = None
    decoder_hidden_states: Layers | None = None
    decoder_attentions: Layers | None = None
    cross_attentions: Layers | None = None
    encoder_last_hidden_state: mx.array | None = None
    encoder_hidden_states: Layers | None = None
    encoder_attentions: Layers | None = None
