"""Granite Speech NAR: a Conformer-CTC encoder drafts a text, which a Granite decoder that looks
both ways edits in one pass."""

from .config import GraniteSpeechNarConfig
from .model import GraniteSpeechNarForCTC

__all__ = ["GraniteSpeechNarConfig", "GraniteSpeechNarForCTC"]
