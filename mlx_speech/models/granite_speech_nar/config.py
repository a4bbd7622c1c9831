"""The configuration of Granite Speech NAR: those of its three parts, and how they are put
together."""

from dataclasses import dataclass
from typing import ClassVar

from ...errors import InputError
from ..config import DERIVED, Positions, PretrainedConfig, VocabIndex
from ..granite import GraniteConfig
from ..granite_speech.config import make_parts
from .encoder import GraniteSpeechNarEncoderConfig
from .projector import GraniteSpeechNarProjectorConfig

_FIRST_RELEASE = "nle"  #: what the first revision of the released model calls the architecture
_LAST_LAYER = -1


@dataclass(kw_only=True)
class GraniteSpeechNarTextConfig(GraniteConfig):
    """Configuration of the editor, a Granite decoder."""

    other_types: ClassVar[tuple[str, ...]] = ("granite_speech_nar_text",)


@dataclass(kw_only=True)
class GraniteSpeechNarConfig(PretrainedConfig):
    """Configuration of a Granite Speech NAR model. Its parts may be given as dicts, or left out.

    encoder_layer_indices: layers of the encoder whose states the projector gets, 0 for the input of
        the first one: in ascending order, and at the end the last one, which is also -1. By default
        those of the encoder's `cat_hidden_layers`, or 4, 8 and 12, and the last.
    scale_projected_embeddings: whether rows of audio are divided by the `embedding_multiplier` that
        they are multiplied with in the editor.
    blank_token_id: of the editor's labels; by default the text's `eos_token_id`.
    min_edit_sequence_length: slots that the shortest drafts are given. Released models have 8; by
        default it is 1 where `encoder_layer_indices` is not given either, as in transformers.
    normalizes_drafts: whether drafts are put in lower case and tokenized anew before they are
        edited, as in the first revision of the released model.
    """

    model_type: ClassVar[str] = "granite_speech_nar"
    other_types: ClassVar[tuple[str, ...]] = (_FIRST_RELEASE,)
    aliases: ClassVar[dict[str, str]] = {"llm_config": "text_config"}

    text_config: GraniteSpeechNarTextConfig = DERIVED
    encoder_config: GraniteSpeechNarEncoderConfig = DERIVED
    projector_config: GraniteSpeechNarProjectorConfig = DERIVED
    encoder_layer_indices: list[int] = DERIVED
    scale_projected_embeddings: bool = True
    blank_token_id: VocabIndex = DERIVED
    min_edit_sequence_length: Positions = DERIVED
    normalizes_drafts: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self):
        make_parts(self, "Granite Speech NAR")
        super().__post_init__()
        encoder, text = self.encoder_config, self.text_config
        text.tie_word_embeddings = self.tie_word_embeddings
        if self.min_edit_sequence_length is None:
            self.min_edit_sequence_length = 1 if self.encoder_layer_indices is None else 8
        if self.min_edit_sequence_length > text.max_position_embeddings:
            rule = f"at most max_position_embeddings, {text.max_position_embeddings}"
            raise InputError.must_be(
                "min_edit_sequence_length", self.min_edit_sequence_length, rule
            )
        if self.encoder_layer_indices is None:
            listed = encoder.cat_hidden_layers or [4, 8, 12]
            self.encoder_layer_indices = [*sorted(set(listed)), _LAST_LAYER]
        encoder.cat_hidden_layers = self._layers_before_last()
        self._fit_projector()
        if self.blank_token_id is None:
            self.blank_token_id = text.eos_token_id
        if not isinstance(self.blank_token_id, int) or self.blank_token_id >= text.vocab_size:
            rule = f"one of {text.vocab_size} tokens"
            raise InputError.must_be("blank_token_id", self.blank_token_id, rule)
        if encoder.bpe_output_dim is None:
            encoder.bpe_output_dim = text.vocab_size
        if encoder.bpe_output_dim - text.vocab_size not in (0, 1):
            rule = f"the text's vocab_size, {text.vocab_size}, or one more"
            raise InputError.must_be("bpe_output_dim", encoder.bpe_output_dim, rule)

    @classmethod
    def from_dict(cls, data, place="config.json: "):
        """See `PretrainedConfig.from_dict`; the first revision calls its parts otherwise."""
        if data.get("model_type") == _FIRST_RELEASE:
            data = {
                name: {n: v for n, v in value.items() if n != "model_type"}
                if name in ("encoder_config", "projector_config") and isinstance(value, dict)
                else value
                for name, value in data.items()
            }
            data.setdefault("encoder_layer_indices", [4, 8, 12, _LAST_LAYER])
            data["normalizes_drafts"] = True
        return super().from_dict(data, place)

    def _layers_before_last(self) -> list[int]:
        """The `cat_hidden_layers` that `encoder_layer_indices` says.

        Raises:
            InputError: there are no such layers, or they are in another order.
        """
        number, indices = self.encoder_config.num_layers, self.encoder_layer_indices
        layers = [index + number + 1 if index < 0 else index for index in indices]
        ascending = sorted({layer for layer in layers if layer >= 0})
        if layers != ascending or layers[-1:] != [number]:
            rule = f"layers of 0 to {number} in ascending order that end with the last"
            raise InputError.must_be("encoder_layer_indices", indices, rule)
        return layers[:-1]

    def _fit_projector(self) -> None:
        """Settle what the projector's configuration leaves to the other parts.

        Raises:
            InputError: it says something else than these.
        """
        sizes = {
            "num_encoder_layers": len(self.encoder_layer_indices),
            "encoder_dim": self.encoder_config.hidden_dim,
            "llm_dim": self.text_config.hidden_size,
        }
        for name, size in sizes.items():
            if getattr(self.projector_config, name) is None:
                setattr(self.projector_config, name, size)
            elif (found := getattr(self.projector_config, name)) != size:
                raise InputError.must_be(f"projector_config.{name}", found, f"{size}, as there are")
