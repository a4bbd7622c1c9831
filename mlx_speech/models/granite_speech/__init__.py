"""Granite Speech: a Conformer-CTC encoder, a windowed Q-Former and a Granite decoder."""

from .model import (
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechPlusConfig,
    GraniteSpeechPlusForConditionalGeneration,
)

__all__ = [
    "GraniteSpeechConfig",
    "GraniteSpeechForConditionalGeneration",
    "GraniteSpeechPlusConfig",
    "GraniteSpeechPlusForConditionalGeneration",
]
