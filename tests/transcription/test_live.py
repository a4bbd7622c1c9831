"""Text of audio that is still coming in."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import DATA
from sounds import LIVELY, STEADY, sounds

from mlx_speech import InputError, LiveTranscriber, load_audio

RATE = 16000


def recording(name: str) -> np.ndarray:
    return np.array(load_audio(DATA / "audio" / name))


def pushed(live: LiveTranscriber, samples: np.ndarray, size: int | None) -> list:
    """The events of samples that come in pieces of so many, or of any number."""
    events, random, start = [], np.random.default_rng(0), 0
    while start < len(samples):
        end = start + (size or int(random.integers(1, RATE)))
        events += live.push(samples[start:end])
        start = end
    return events + live.finish()


def test_a_sentence(tiny):
    events = pushed(LiveTranscriber(tiny), recording("espeak_04.flac"), 320)
    kinds = [event.kind for event in events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["stopped", "corrected"]
    assert {event.segment_id for event in events} == {0}
    committed = "".join(event.text for event in events if event.kind == "committed")
    assert committed.endswith("set a timer for eleven hours")
    assert events[-1].text == events[-1].segment.text
    assert events[-1].text.startswith("two zero five")


def test_nothing_comes_after_the_end(tiny):
    live = LiveTranscriber(tiny)
    assert live.finish() == []
    with pytest.raises(InputError, match="the audio has ended"):
        live.push(np.zeros(1, np.float32))


@pytest.mark.parametrize("size", [320, 1600, RATE, None])
def test_pieces_do_not_matter(tiny, size):
    samples = recording("espeak_04.flac")
    whole = pushed(LiveTranscriber(tiny), samples, samples.size)
    assert pushed(LiveTranscriber(tiny), samples, size) == whole


@pytest.mark.parametrize("makers", [STEADY, LIVELY], ids=["steady", "lively"])
def test_sounds_that_are_no_speech(tiny, makers):
    for sound in sounds(makers, len(makers), longest=10):
        assert pushed(LiveTranscriber(tiny), sound.samples, RATE) == [], sound.kind
