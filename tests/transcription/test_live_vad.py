"""Whether somebody speaks, at once."""

from __future__ import annotations

import mlx.core as mx
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
        vad.forget(vad.earliest_onset(0) - 40)
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


def scripted(monkeypatch, sure, is_voice) -> LiveVAD:
    """One whose Silero VAD is sure of n windows as `sure(n)` has it, (n,); `is_voice` tells
    which of these are voices."""
    monkeypatch.setattr("mlx_speech.transcription.live_vad.is_voice", is_voice)
    vad = LiveVAD(0.5)
    vad._silero = lambda given, _: (
        mx.array(sure(given.size // 512)).astype(mx.float32),
        mx.zeros(1),
    )
    return vad


def test_a_voice_that_goes_on_is_one(monkeypatch):
    """It is looked at no more."""
    voices = iter([False, True])
    vad = scripted(monkeypatch, np.ones, lambda *_: next(voices))
    for _ in range(20):
        vad.push(np.ones(HOP, np.float32))
    assert vad.onset(0) == 0
    assert vad.onset(100) == pytest.approx(100, abs=2)


def test_a_word_that_is_a_voice_when_it_is_over(monkeypatch):
    voices, sure = iter([False, True]), iter([np.ones(5), np.zeros(5), np.zeros(5)])
    vad = scripted(monkeypatch, lambda _: next(sure), lambda *_: next(voices))
    vad.push(np.ones(HOP, np.float32))
    assert vad.onset(0) is None
    vad.push(np.ones(HOP, np.float32))
    assert vad.onset(0) == 0


def test_no_onset_is_earlier_than_was_told(monkeypatch):
    """However sure Silero VAD is in turn, and however late what it is sure of is a voice: what is
    before `earliest_onset` may be forgotten."""
    random, found = np.random.default_rng(0), 0
    for share, voices in [(0.6, 0.2), (0.8, 0.2), (0.95, 0.2), (0.99, 0.05)] * 100:
        vad = scripted(
            monkeypatch,
            lambda count, share=share: random.random(count) < share,
            lambda *_, voices=voices: random.random() < voices,
        )
        earliest = 0
        for _ in range(30):
            vad.push(np.ones(HOP, np.float32))
            if (onset := vad.onset(0)) is not None:
                assert onset >= earliest
                found += 1
                break
            assert vad.earliest_onset(0) >= earliest
            earliest = vad.earliest_onset(0)
    assert found > 200


def test_what_is_forgotten_changes_nothing():
    vad = told(recording())
    before = vad.speech(100, 200), vad.onset(100)
    vad.forget(100)
    assert vad.onset(100) == before[1]
    np.testing.assert_array_equal(vad.speech(100, 200), before[0])
