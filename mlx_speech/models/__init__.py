"""The registry: a checkpoint's `model_type` -> where its classes are."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from ..errors import CheckpointError


@dataclass(frozen=True)
class Architecture:
    """Classes that serve one model_type, by module and name, so that listing imports nothing.

    models: the first is what a checkpoint holds that does not say.
    """

    module: str
    models: tuple[str, ...]
    processor: str

    def model_class(self, name: str | None = None) -> type:
        """The model class of that name, as config.json's `architectures` has it, or the usual one;
        its `config_class` is the configuration."""
        chosen = name if name in self.models else self.models[0]
        return getattr(import_module(f"{__name__}.{self.module}"), chosen)

    @property
    def processor_class(self) -> type:
        """What turns text and audio into the model's inputs and its tokens back into text."""
        return getattr(import_module("mlx_speech.processing"), self.processor)


ARCHITECTURES = {
    "granite": Architecture("granite", ("GraniteForCausalLM", "GraniteModel"), "Tokenizer"),
    "granite_speech": Architecture(
        "granite_speech", ("GraniteSpeechForConditionalGeneration",), "GraniteSpeechProcessor"
    ),
    "granite_speech_plus": Architecture(
        "granite_speech", ("GraniteSpeechPlusForConditionalGeneration",), "GraniteSpeechProcessor"
    ),
    "jais2": Architecture("jais2", ("Jais2ForCausalLM", "Jais2Model"), "Tokenizer"),
    "llama": Architecture(
        "llama", ("LlamaForCausalLM", "LlamaForSequenceClassification", "LlamaModel"), "Tokenizer"
    ),
    "speech_to_text": Architecture(
        "speech_to_text",
        ("Speech2TextForConditionalGeneration", "Speech2TextModel"),
        "Speech2TextProcessor",
    ),
}


def architecture(model_type: str | None) -> Architecture:
    """The classes for a `model_type`.

    Raises:
        CheckpointError: it is not supported; the message lists those that are.
    """
    try:
        return ARCHITECTURES[model_type]
    except (KeyError, TypeError):  # TypeError: a list or an object
        raise CheckpointError(
            f"model_type {model_type!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        ) from None
