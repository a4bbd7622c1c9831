"""A conversation, and what replies in it."""

from .session import REPLY_TOKENS, ChatSession

__all__ = ["REPLY_TOKENS", "ChatSession"]
