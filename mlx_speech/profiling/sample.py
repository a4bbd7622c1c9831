"""The recordings that a model is measured with."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import mlx.core as mx

from ..audio import SAMPLING_RATE, open_recording

#: a segment as `transcribe` makes them
SAMPLE_SECONDS = 15


def bundled_recordings() -> list[str]:
    """Short English recordings, which are installed with the command that converts models."""
    folder = Path(str(files("mlx_speech.convert"))) / "recordings"
    return sorted(str(path) for path in folder.glob("*.flac"))


def joined_sample(recordings: Sequence[str]) -> mx.array:
    """The first `SAMPLE_SECONDS` of recordings one after the other, repeated if they are shorter:
    samples (n,) at `SAMPLING_RATE`.

    Raises:
        AudioError: a recording cannot be read.
    """
    wanted, parts = SAMPLE_SECONDS * SAMPLING_RATE, []
    for source in recordings:
        with open_recording(source) as recording:
            parts.append(recording.read(0, wanted))
        if sum(map(len, parts)) >= wanted:
            break
    samples = mx.concatenate(parts)
    return mx.tile(samples, -(-wanted // len(samples)))[:wanted]
