"""Granite Speech: a Conformer-CTC encoder, a windowed Q-Former and a Granite decoder."""

from .config import GraniteSpeechConfig, GraniteSpeechPlusConfig
from .model import (
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechPlusForConditionalGeneration,
)

__all__ = [
    "GraniteSpeechConfig",
    "GraniteSpeechForConditionalGeneration",
    "GraniteSpeechPlusConfig",
    "GraniteSpeechPlusForConditionalGeneration",
]
