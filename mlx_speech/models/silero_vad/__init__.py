"""Silero VAD: how likely somebody speaks, window by window."""

from .model import WINDOW_SAMPLES, SileroVAD

__all__ = ["WINDOW_SAMPLES", "SileroVAD"]
