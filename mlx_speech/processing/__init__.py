"""Text in and out: tokenizers, chat templates, and the processors that join them with audio."""

from .granite_speech import GraniteSpeechProcessor
from .speech_to_text import Speech2TextProcessor
from .speech_to_text_tokenizer import Speech2TextTokenizer
from .tokenizer import Tokenizer

__all__ = ["GraniteSpeechProcessor", "Speech2TextProcessor", "Speech2TextTokenizer", "Tokenizer"]
