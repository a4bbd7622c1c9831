"""Text in and out: tokenizers, chat templates, and the processors that join them with audio."""

from .granite_speech import GraniteSpeechProcessor
from .tokenizer import LlamaTokenizer, Tokenizer

__all__ = ["GraniteSpeechProcessor", "LlamaTokenizer", "Tokenizer"]
