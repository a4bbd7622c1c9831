"""Audio that is pushed to a `LiveTranscriber`, and what it makes of it."""

from __future__ import annotations

import numpy as np
from conftest import DATA

from mlx_speech import LiveTranscriber, load_audio

RATE = 16000
SENTENCE = "espeak_04.flac"  # of 4.7 s
#: the model was trained on single sentences, and makes nothing sensible of several at once
CUTS = {"chunk_duration": 9, "min_silence": 0.4}


def recording(name: str = SENTENCE, rate: int = RATE) -> np.ndarray:
    return np.array(load_audio(DATA / "audio" / name, target_sampling_rate=rate))


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def pushed(live: LiveTranscriber, samples: np.ndarray, size: int | None = RATE) -> list:
    """The events of samples that come in pieces of so many, or of any number."""
    events, random, start = [], np.random.default_rng(0), 0
    while start < len(samples):
        end = start + (size or int(random.integers(1, RATE)))
        events += live.push(samples[start:end])
        start = end
    return events + live.finish()


def texts(events: list, kind: str = "corrected") -> list[str]:
    return [event.text for event in events if event.kind == kind]
