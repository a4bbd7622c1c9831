"""A file, standard input, an address or an array -> mono float32 samples, in memory or on disk."""

from .load import SAMPLING_RATE, load_audio, open_recording
from .recording import Recording

__all__ = ["SAMPLING_RATE", "Recording", "load_audio", "open_recording"]
