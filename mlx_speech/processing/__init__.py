"""Text in and out: tokenizers, chat templates, and the processors that join them with audio."""
