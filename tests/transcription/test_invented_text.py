"""No text where nobody speaks, whatever sounds; and no word less where somebody does."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from conftest import DATA
from sounds import LIVELY, LOUDEST_DBFS, QUIETEST_DBFS, RATE, STEADY, over, sounds

from mlx_speech import load_audio, stream_transcribe, transcribe
from mlx_speech.transcription.pipeline import prepare
from mlx_speech.transcription.vad import RecordingVAD
from mlx_speech.transcription.word_errors import word_errors

RECORDINGS = sorted(p.name for p in (DATA / "audio").glob("*_??.flac"))
MANIFEST = (DATA / "audio" / "manifest.jsonl").read_text().splitlines()
TEXTS = {entry["file"]: entry["text"] for entry in map(json.loads, MANIFEST)}
SHORT = 0.5  #: seconds
LENGTHS = [pytest.param((0.02, SHORT), id="short"), pytest.param((SHORT, 3.0), id="long")]


def recording(name: str) -> np.ndarray:
    return np.array(load_audio(DATA / "audio" / name))


def has_speech(samples: np.ndarray) -> bool:
    vad = RecordingVAD()
    return (vad.push(samples) + vad.finish()).speech.any()


@pytest.fixture(scope="module", params=["tiny", "tiny_s2t"])
def model(request):
    """(model, processor) of either family."""
    return request.getfixturevalue(request.param)


def written(found: list, model) -> Counter[str]:
    """Of each kind of sound, how many get a text."""
    return Counter(
        sound.kind
        for sound in found
        if transcribe(sound.samples, model, sampling_rate=RATE, num_beams=1).text
    )


class TestSounds:
    def test_same_for_the_same_seed(self):
        first, again, other = (sounds(LIVELY, 20, seed, longest=2.0) for seed in (1, 1, 2))
        for one, two, three in zip(first, again, other, strict=True):
            assert one.kind == two.kind == three.kind
            assert (one.samples == two.samples).all()
            assert one.samples.size != three.samples.size

    def test_lengths_and_levels(self):
        found = sounds(STEADY, 200, 3, longest=2.0)
        sizes = [sound.samples.size / RATE for sound in found]
        assert 0.02 <= min(sizes) < 0.03
        assert 1.5 < max(sizes) <= 2
        levels = [10 * np.log10(np.square(sound.samples).mean()) for sound in found]
        assert QUIETEST_DBFS - 0.1 <= min(levels) < -55
        assert -6 < max(levels) <= LOUDEST_DBFS
        assert {sound.kind for sound in found} == STEADY.keys()


class TestSteady:
    def test_no_speech_is_detected(self):
        found = sounds(STEADY, 200, 4, longest=20.0)
        assert not any(has_speech(sound.samples) for sound in found)

    @pytest.mark.parametrize("lengths", LENGTHS)
    def test_no_text(self, model, lengths):
        """Of those below half a second, Speech2Text writes about two of three if it is let."""
        assert written(sounds(STEADY, 32, 5, *lengths), model) == {}


class TestLively:
    def test_hardly_any_speech_is_detected(self):
        """In one of 200 at most, which are as long as a minute."""
        assert sum(has_speech(sound.samples) for sound in sounds(LIVELY, 200, 5)) <= 1

    @pytest.mark.parametrize("lengths", LENGTHS)
    def test_hardly_any_text(self, model, lengths):
        """Three of four would have one by Speech2Text, of the long ones one of three by Granite."""
        assert written(sounds(LIVELY, 40, 5, *lengths), model).total() <= 1

    def test_beside_speech(self, model):
        """What is said is written, the siren and the beeps before and after it are not."""
        said = recording("flite_11.flac")
        noises = [s.samples for s in sounds(LIVELY, 40, 6, 2.0, 3.0) if s.kind in ("siren", "dtmf")]
        pause = np.zeros(2 * RATE, np.float32)
        expected = transcribe(said, model, sampling_rate=RATE).text
        assert len(expected.split()) == 9
        for before, after in zip(noises[::2], noises[1::2], strict=True):
            samples = np.concatenate([before, pause, said, pause, after])
            transcript = transcribe(samples, model, sampling_rate=RATE)
            assert transcript.text == expected
            deltas = stream_transcribe(samples, model, sampling_rate=RATE)
            assert "".join(delta.text for delta in deltas).split()[:3] == expected.split()[:3]


class TestSpeech:
    @pytest.mark.parametrize("name", RECORDINGS)
    def test_is_detected_over_noise(self, name):
        samples = recording(name)
        everybody = np.concatenate([recording(other) for other in RECORDINGS])
        for seed, noise in enumerate((0.0, 1.0, 2.0, everybody)):
            for decibels in (10, 0):
                random = np.random.default_rng(seed)
                assert has_speech(over(samples, noise, decibels, random))

    @pytest.mark.parametrize("decibels", [10, 5])
    def test_no_more_words_are_lost_than_by_the_model(self, model, decibels):
        """Recordings over white noise and babble have as many word errors as if all of them were
        decoded, and none has no text."""
        everybody = np.concatenate([recording(other) for other in RECORDINGS])
        errors = {True: 0, False: 0}
        for number, name in enumerate(RECORDINGS[::3]):
            clean = recording(name)
            for noise in (0.0, everybody):
                samples = over(clean, noise, decibels, np.random.default_rng(number))
                for vad in errors:
                    found = transcribe(samples, model, sampling_rate=RATE, num_beams=1, vad=vad)
                    errors[vad] += word_errors(TEXTS[name], found.text)
                    assert found.text
        assert errors[True] <= errors[False]


class TestWithoutVAD:
    def test_all_is_decoded(self, model):
        """Silence before, between and behind sentences is in the segments, too."""
        pause = np.zeros(2 * RATE, np.float32)
        said = recording("flite_11.flac")
        samples = np.concatenate([pause, said, pause, said, pause])
        transcript = transcribe(samples, model, sampling_rate=RATE, vad=False)
        assert transcript.regions == [(0.0, pytest.approx(samples.size / RATE, abs=0.02))]
        assert len(transcript.segments) == 1

    def test_noise_gets_its_text(self, model):
        found = sounds(STEADY, 24, 5, 0.5, 3.0)
        texts = [
            transcribe(s.samples, model, sampling_rate=RATE, num_beams=1, vad=False).text
            for s in found
        ]
        assert any(texts)


def test_regions_are_of_speech(model):
    (beeps,) = (s.samples for s in sounds(LIVELY, 10, 8, 2.0, 3.0) if s.kind == "beeps")
    job = prepare(beeps, model, {"sampling_rate": RATE})
    assert list(job.batches(1)) == []
    assert job.regions == []
    job = prepare(recording("flite_11.flac"), model, {"sampling_rate": RATE})
    assert len(list(job.batches(1))) == 1
    assert job.regions


@pytest.mark.parametrize("size", [1, 80, 256, 257, 399, 400, 401, 1500])
def test_shorter_than_any_word(model, size):
    """No text and no error, whether there is a whole window of features or not."""
    loud = np.random.default_rng(size).uniform(-0.5, 0.5, size).astype(np.float32)
    for samples in (loud, np.zeros(size, np.float32), recording("espeak_00.flac")[8000:][:size]):
        transcript = transcribe(samples, model, sampling_rate=RATE)
        assert (transcript.text, transcript.segments) == ("", [])
        assert list(stream_transcribe(samples, model, sampling_rate=RATE)) == []
