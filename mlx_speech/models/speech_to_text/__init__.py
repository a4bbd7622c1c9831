"""Speech2Text: a Transformer encoder-decoder over filter banks."""

from .layers import Speech2TextConfig
from .model import Speech2TextForConditionalGeneration, Speech2TextModel

__all__ = ["Speech2TextConfig", "Speech2TextForConditionalGeneration", "Speech2TextModel"]
