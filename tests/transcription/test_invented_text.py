"""No text where nobody speaks, whatever sounds; and no word less where somebody does."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA
from sounds import LIVELY, LOUDEST_DBFS, QUIETEST_DBFS, RATE, STEADY, at_level, over, sounds

from mlx_speech import load_audio, stream_transcribe, transcribe
from mlx_speech.models.silero_vad import SileroVAD
from mlx_speech.transcription import pipeline
from mlx_speech.transcription.pipeline import prepare
from mlx_speech.transcription.vad import has_speech

RECORDINGS = sorted(p.name for p in (DATA / "audio").glob("*_??.flac"))
SHORT = 0.5  #: seconds; shorter recordings have nothing that their energy could be compared with
LENGTHS = [pytest.param((0.02, SHORT), id="short"), pytest.param((SHORT, 3.0), id="long")]


def recording(name: str) -> np.ndarray:
    return np.array(load_audio(DATA / "audio" / name))


@pytest.fixture(scope="module")
def silero() -> SileroVAD:
    return SileroVAD.bundled()


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
    def test_silero_detects_no_speech(self, silero):
        """In less than one of 200; all that are below half a second come to be asked about."""
        found = sounds(STEADY, 400, 4, longest=SHORT)
        assert sum(has_speech(mx.array(sound.samples), silero) for sound in found) < 2

    @pytest.mark.parametrize("lengths", LENGTHS)
    def test_no_text(self, model, lengths):
        """Of those below half a second, Speech2Text writes about two of three if it is let."""
        assert written(sounds(STEADY, 32, 5, *lengths), model) == {}


class TestLively:
    def test_silero_detects_hardly_any_speech(self, silero):
        found = sounds(LIVELY, 200, 5, longest=4.0)
        assert sum(has_speech(mx.array(sound.samples), silero) for sound in found) < 6

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
    """Silero VAD detects it wherever it is speech."""

    @pytest.mark.parametrize("name", RECORDINGS)
    def test_clean_or_over_noise(self, silero, name):
        samples = recording(name)
        everybody = np.concatenate([recording(other) for other in RECORDINGS])
        assert has_speech(mx.array(samples), silero)
        for seed, noise in enumerate((0.0, 1.0, 2.0, everybody)):
            for decibels in (10, 0):
                random = np.random.default_rng(seed)
                assert has_speech(mx.array(over(samples, noise, decibels, random)), silero)

    @pytest.mark.parametrize("dbfs", [-80, -60, -40, -10])
    def test_loud_or_quiet(self, silero, dbfs):
        for name in RECORDINGS[::4]:
            samples = at_level(recording(name), dbfs)
            assert has_speech(mx.array(samples), silero)
            assert has_speech(mx.array(samples + np.float32(0.1)), silero)  # off centre

    def test_a_single_word(self, silero):
        """The first of "one six four", half a second with what is around it; and in silence."""
        samples = recording("festival_12.flac")[: RATE // 2 + 2000]
        assert has_speech(mx.array(samples), silero)
        assert has_speech(mx.array(np.pad(samples, RATE)), silero)

    def test_no_word_is_lost(self, model, monkeypatch):
        """The bundled recordings are transcribed as if nobody had asked."""
        samples = recording("long.flac")[: 20 * RATE]
        clean = [samples, *map(recording, RECORDINGS[::3])]
        noisy = [over(s, 1.0, 10, np.random.default_rng(7)) for s in clean]
        texts = [transcribe(s, model, sampling_rate=RATE, num_beams=1) for s in clean + noisy]
        monkeypatch.setattr(pipeline, "has_speech", lambda samples, silero: True)
        assert texts == [
            transcribe(s, model, sampling_rate=RATE, num_beams=1) for s in clean + noisy
        ]


def test_it_is_told_what_was_left_out(model):
    """Where there was sound that may have been speech and was not, and where there was speech."""
    (beeps,) = (s.samples for s in sounds(LIVELY, 10, 8, 2.0, 3.0) if s.kind == "beeps")
    job = prepare(beeps, model, {"sampling_rate": RATE})
    assert list(job.batches(1)) == []
    assert job.regions == []
    assert job.other_regions or model[0].config.model_type.startswith("granite")
    job = prepare(recording("flite_11.flac"), model, {"sampling_rate": RATE})
    assert len(list(job.batches(1))) == 1
    assert job.regions
    assert not job.other_regions


@pytest.mark.parametrize("size", [1, 80, 256, 257, 399, 400, 401, 1500])
def test_shorter_than_any_word(model, size):
    """No text and no error, whether there is a whole window of features or not."""
    loud = np.random.default_rng(size).uniform(-0.5, 0.5, size).astype(np.float32)
    for samples in (loud, np.zeros(size, np.float32), recording("espeak_00.flac")[8000:][:size]):
        transcript = transcribe(samples, model, sampling_rate=RATE)
        assert (transcript.text, transcript.segments) == ("", [])
        assert list(stream_transcribe(samples, model, sampling_rate=RATE)) == []
