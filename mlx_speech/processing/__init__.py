"""Text in and out: tokenizers, chat templates, and the processors that join them with audio."""

from .granite_speech import GraniteSpeechProcessor
from .speech_to_text import Speech2TextProcessor
from .speech_to_text_tokenizer import Speech2TextTokenizer
from .tokenizer import LlamaTokenizer, Tokenizer

#: by the name under which transformers' examples import it
AutoTokenizer = Tokenizer

__all__ = [
    "AutoTokenizer",
    "GraniteSpeechProcessor",
    "LlamaTokenizer",
    "Speech2TextProcessor",
    "Speech2TextTokenizer",
    "Tokenizer",
]
