"""From a recording to a transcript; `pipeline` has the whole trip."""

from .pipeline import stream_transcribe, transcribe
from .transcript import Segment, Transcript, TranscriptionDelta, Word

__all__ = ["Segment", "Transcript", "TranscriptionDelta", "Word", "stream_transcribe", "transcribe"]
