"""Whether somebody speaks, at once."""

from __future__ import annotations

import numpy as np
import pytest
from live_audio import RATE, recording, silence
from sounds import STEADY, sound

from mlx_speech.transcription.live_vad import LiveVAD

HOP = 2560


def told(samples: np.ndarray, size: int = HOP) -> LiveVAD:
    vad = LiveVAD(0.5)
    for start in range(0, len(samples), size):
        vad.push(samples[start : start + size])
    return vad


@pytest.mark.parametrize("decibels", [20, 0, -20, -40, -50])
def test_loud_or_quiet(decibels):
    """From clipped to what 16 bits hardly hold."""
    samples = np.clip(recording() * 10 ** (decibels / 20), -1, 1).astype(np.float32)
    vad = told(samples)
    assert vad.onset(0) == pytest.approx(20, abs=6)
    assert vad.speech(20, 220).mean() > 0.8
    assert vad.speech(0, 12).mean() == 0


def test_quiet_after_loud():
    loud = recording()
    vad = told(np.concatenate([loud, silence(3), loud * np.float32(0.03)]))
    end = (len(loud) + 3 * RATE) // 320
    assert vad.onset(end) == pytest.approx(end + 20, abs=8)


def test_silence_is_none():
    samples = silence(2)
    samples[::2] = 3e-5  # dither
    vad = told(samples)
    assert vad.onset(0) is None
    assert not vad.speech(0, 100).any()


def test_what_is_like_a_voice_in_low_frequencies_alone():
    """A chord that is a vowel to Silero VAD for 1.3 s is none, and is let go of; what is said
    behind it is not."""
    chord, samples = sound(STEADY, 630, 1).samples, recording()
    vad = LiveVAD(0.5)
    for start in range(0, len(chord) // HOP * HOP, HOP):
        vad.push(chord[start : start + HOP])
        assert vad.onset(0) is None
        end = (start + HOP) // 320
        assert vad.earliest_onset(0) > end - 60
    for start in range(0, len(samples), HOP):
        vad.push(samples[start : start + HOP])
    assert vad.onset(0) == pytest.approx(end + 20, abs=6)


def test_onset_from_a_frame_on():
    vad = told(recording())
    first = vad.onset(0)
    assert vad.onset(100) == pytest.approx(100, abs=10)
    assert vad.onset(first) == first
    assert vad.earliest_onset(0) >= 225
    assert vad.onset(230) is None


def test_speech_that_has_just_begun_may_be_an_onset():
    samples = recording()
    whole = told(samples).onset(0)
    begun = told(samples[: (whole + 3) * 320 // 512 * 512], 512)
    assert begun.onset(0) is None
    assert begun.earliest_onset(0) == whole


def test_what_is_forgotten_changes_nothing():
    vad = told(recording())
    before = vad.speech(100, 200), vad.onset(100)
    vad.forget(100)
    assert vad.onset(100) == before[1]
    np.testing.assert_array_equal(vad.speech(100, 200), before[0])
