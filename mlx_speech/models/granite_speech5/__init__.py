"""Granite Speech 5.0 TurboCTC: a Conformer encoder with a CTC head, and no decoder."""

from .config import GraniteSpeech5CTCConfig, GraniteSpeech5EncoderConfig
from .encoder import GraniteSpeech5Encoder
from .model import GraniteSpeech5ForCTC

__all__ = [
    "GraniteSpeech5CTCConfig",
    "GraniteSpeech5Encoder",
    "GraniteSpeech5EncoderConfig",
    "GraniteSpeech5ForCTC",
]
