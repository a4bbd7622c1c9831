"""Where there is speech: CTC head and energy, on speech, silence and noise."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA

from mlx_speech import load_audio
from mlx_speech.activity import SILENCE_DBFS, Activity, EnergyActivity, ctc_activity
from mlx_speech.segmentation import Segmenter

RATE = 16000
RECORDINGS = sorted(p.name for p in (DATA / "audio").glob("*_??.flac"))


def recording(name: str) -> np.ndarray:
    return np.array(load_audio(DATA / "audio" / name))


def energy(samples: np.ndarray, step: int = 30 * RATE) -> Activity:
    """The activity of samples pushed `step` at a time."""
    meter = EnergyActivity()
    parts = [meter.push(samples[i : i + step]) for i in range(0, samples.size, step)]
    parts.append(meter.finish())
    return Activity(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("speech", "level")))


def noise(seconds: float, slope: float, dbfs: float = -20.0, seed: int = 0) -> np.ndarray:
    """Noise of `dbfs` whose power falls with frequency to the power of `slope`: 0 is white, 1 pink,
    2 brown."""
    size = int(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / RATE), 5)
    shaped = np.fft.irfft(spectrum * frequency ** (-slope / 2), size)
    return at_level(shaped, dbfs)


def at_level(samples: np.ndarray, dbfs: float) -> np.ndarray:
    rms = np.sqrt(np.square(samples).mean())
    return (samples * (10 ** (dbfs / 20) / rms)).astype(np.float32)


def loudest(samples: np.ndarray) -> float:
    """RMS of the loudest 20 ms, in dBFS."""
    frames = samples[: samples.size // 320 * 320].reshape(-1, 320)
    return 10 * np.log10(np.square(frames).mean(axis=1).max())


def ctc(tiny, samples: np.ndarray) -> Activity:
    model, processor = tiny
    features = processor.audio_processor(mx.array(samples))["input_features"]
    return ctc_activity(model.encoder(features).ctc_logits[0], space=ord(" "))


def spans(activity: Activity, audible=None, *, window=15, max_frames=450, min_silence=30):
    segmenter = Segmenter(window=window, max_frames=max_frames, min_silence=min_silence)
    return segmenter.push(activity, audible) + segmenter.finish()


class TestSilenceAndNoise:
    """Nothing is heard in them, by either of the two."""

    @pytest.mark.parametrize("dbfs", [-70, -50, -30, -10])
    @pytest.mark.parametrize("slope", [0, 1, 2], ids=["white", "pink", "brown"])
    def test_noise(self, slope, dbfs):
        assert not energy(noise(60, slope, dbfs)).speech.any()

    def test_noise_that_sets_in_grows_and_ends(self):
        sound = noise(50, 0, -20)
        sound[: 10 * RATE] = 0
        sound[20 * RATE : 30 * RATE] *= 10
        sound[40 * RATE :] *= 0.001
        assert not energy(sound).speech.any()

    @pytest.mark.parametrize("dbfs", [-60, -20])
    @pytest.mark.parametrize("hertz", [50, 60, 100, 400])
    def test_hum(self, hertz, dbfs):
        at = 2 * np.pi * hertz * np.arange(30 * RATE) / RATE
        hum = sum(np.sin(at * k) / k for k in (1, 2, 3, 5))
        assert not energy(at_level(hum, dbfs)).speech.any()

    def test_digital_silence_dither_and_clicks(self):
        silence = np.zeros(30 * RATE, np.float32)
        assert not energy(silence).speech.any()
        silence[100::RATE] = 0.9  # amid a frame
        assert not energy(silence).speech.any()
        dither = np.random.default_rng(0).integers(-1, 2, 30 * RATE) / 32768
        assert not energy(dither.astype(np.float32)).speech.any()

    def test_ctc_head(self, tiny):
        sounds = [noise(6, slope, -30) for slope in (0, 2)] + [recording("silence.wav")]
        for sound in sounds:
            assert spans(ctc(tiny, sound)) == []
            assert spans(energy(sound), window=1) == []


class TestSpeech:
    @pytest.mark.parametrize("name", RECORDINGS)
    def test_loud_or_quiet(self, name):
        """Down to a loudest frame of -65 dBFS, all of it is one stretch of speech."""
        samples = recording(name)
        (usual,) = spans(energy(samples), window=1)
        for dbfs in (-50, -60, -65):
            quiet = samples * np.float32(10 ** ((dbfs - loudest(samples)) / 20))
            (span,) = spans(energy(quiet), window=1)
            assert abs(span.first - usual.first) <= 15
            assert abs(span.last - usual.last) <= 15

    def test_threshold_is_in_dbfs(self):
        """A tone that comes and goes is heard just above the threshold, and not below it."""
        tone = np.sin(2 * np.pi * 1000 * np.arange(6 * RATE) / RATE)
        tone *= np.arange(6 * RATE) // RATE % 2
        for over in (-1, 1):
            on = at_level(tone, SILENCE_DBFS + over - 10 * np.log10(2))
            assert energy(on).speech.any() == (over > 0)

    def test_quiet_speech_beside_loud(self):
        """40 dB quieter than the speaker before and after, after pauses of a second."""
        loud, quiet = recording("flite_11.flac"), recording("espeak_03.flac")
        quiet = quiet * np.float32(10 ** ((loudest(loud) - 40 - loudest(quiet)) / 20))
        pause = np.zeros(RATE, np.float32)
        found = spans(
            energy(np.concatenate([loud, pause, quiet, pause, loud])), window=1, min_silence=20
        )
        start = (loud.size + RATE) // 320
        assert len(found) == 3
        assert start - 15 <= found[1].first <= start + 25
        assert -25 <= found[1].last - start - quiet.size // 320 <= 25

    @pytest.mark.parametrize("slope", [0, 1, 2], ids=["white", "pink", "brown"])
    @pytest.mark.parametrize("name", RECORDINGS)
    def test_over_steady_noise(self, name, slope):
        """10 dB above it, within two seconds of it on both sides."""
        samples = recording(name)
        speech = np.pad(samples, 2 * RATE)
        level = 10 * np.log10(np.square(samples).mean()) - 10
        (found,) = spans(energy(speech + noise(speech.size / RATE, slope, level)), window=1)
        (usual,) = spans(energy(speech), window=1)
        assert abs(found.first - usual.first) <= 15
        assert abs(found.last - usual.last) <= 15

    def test_less_than_half_a_second_passes(self):
        assert energy(recording("short.wav")).speech.any()


class TestStreaming:
    @pytest.mark.parametrize("size", [1, 159, 160, 320, 479, 480, 16159, 100000])
    def test_as_many_frames_as_the_encoder(self, tiny, size):
        _, processor = tiny
        samples = noise(size / RATE + 1, 0)[:size]
        activity = energy(samples)
        if size > 256:
            features = processor.audio_processor(mx.array(samples))["input_features"]
            assert activity.speech.size == features.shape[1]
        assert activity.speech.size == (size + 160) // 320
        assert activity.level.size == activity.speech.size

    def test_pushes_do_not_matter(self):
        samples = recording("long.flac")[: 8 * RATE + 200]
        whole = energy(samples)
        for step in (77, 320, 5000, 16001):
            parts = energy(samples, step)
            assert (parts.speech == whole.speech).all()
            np.testing.assert_allclose(parts.level, whole.level, atol=1e-4)

    def test_state_stays_small(self):
        meter, samples = EnergyActivity(), noise(10, 0)
        for _ in range(20):
            meter.push(samples)
            assert meter._samples.size + meter._decibels.size < 2000


class TestCtc:
    def test_blanks_and_spaces_are_no_speech(self):
        logits = np.full((4, 5), -9.0, np.float32)
        logits[range(4), [0, 3, 4, 1]] = 9.0
        activity = ctc_activity(mx.array(logits), blank=0, space=4)
        assert activity.speech.tolist() == [False, True, False, True]
        np.testing.assert_allclose(activity.level, [0, 1, -1, 1], atol=1e-3)
        assert ctc_activity(mx.array(logits), blank=1).speech.tolist() == [True, True, True, False]

    def test_half_precision(self):
        logits = mx.random.normal((50, 20), key=mx.random.key(0)).astype(mx.bfloat16)
        activity = ctc_activity(logits)
        assert activity.level.dtype == np.float32
        assert (activity.speech == np.array(mx.argmax(logits, axis=-1) != 0)).all()


@pytest.fixture(scope="module")
def sentences():
    lines = (DATA / "audio" / "manifest.jsonl").read_text().splitlines()
    (entry,) = (e for e in map(json.loads, lines) if e["file"] == "long.flac")
    return [(start, end) for start, end, _ in entry["segments"]]


@pytest.fixture(scope="module")
def samples():
    return recording("long.flac")


class TestLongRecording:
    """24 sentences with pauses; each is one span, and its times are true to 0.3 s."""

    def check(self, found, sentences, *, first=0.3):
        assert len(found) == len(sentences)
        for span, (start, end) in zip(found, sentences, strict=True):
            assert abs(span.last / 50 - end) <= 0.3
            assert -first <= span.first / 50 - start <= 0.3
            # what is cut off is within the silence that the manifest's times include
            assert span.start / 50 <= start + 0.15
            assert span.end / 50 >= end - 0.15

    @pytest.mark.parametrize("min_silence", [30, 50])
    @pytest.mark.parametrize("max_frames", [450, 1500])
    def test_energy(self, samples, sentences, min_silence, max_frames):
        found = spans(energy(samples), window=1, min_silence=min_silence, max_frames=max_frames)
        self.check(found, sentences)

    def test_ctc(self, tiny, samples, sentences):
        """The head places first letters up to 0.6 s early, which only the energy can tell."""
        heard = ctc(tiny, samples)
        self.check(spans(heard, min_silence=20), sentences, first=0.8)
        self.check(spans(heard, energy(samples).speech, min_silence=20), sentences)
