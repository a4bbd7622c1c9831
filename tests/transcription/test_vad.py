"""Where there is speech: Silero VAD on speech, silence and noise, and letters beside it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA
from sounds import LIVELY, STEADY, at_level, colored_noise, over, sound

from mlx_speech import InputError, load_audio
from mlx_speech.transcription.chunks import ChunkOptions, SpanFinder
from mlx_speech.transcription.segmenter import Segmenter, Span
from mlx_speech.transcription.vad import (
    BLOCK_FRAMES,
    EARLY_FRAMES,
    LATE_FRAMES,
    WARM_UP_FRAMES,
    RecordingVAD,
    SpeechActivity,
    ctc_vad,
    spread,
    widened,
)

RATE, FRAME = 16000, 320
RECORDINGS = sorted(p.name for p in (DATA / "audio").glob("*_??.flac"))


def recording(name: str) -> np.ndarray:
    return np.array(load_audio(DATA / "audio" / name))


def activity(
    samples: np.ndarray, step: int = 30 * RATE, first: int = 0, **options
) -> SpeechActivity:
    """The activity of samples from a frame on, pushed `step` at a time."""
    vad, told = RecordingVAD(first=first, **options), SpeechActivity.none()
    for start in range(first * FRAME, samples.size, step):
        told += vad.push(samples[start : start + step])
    return told + vad.finish()


def spans(samples: np.ndarray) -> list[Span]:
    segmenter = Segmenter(window=1, max_frames=450, min_silence=30)
    return segmenter.push(activity(samples)) + segmenter.finish()


def noise(seconds: float, slope: float, dbfs: float = -20.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return at_level(colored_noise(int(seconds * RATE), slope, random), dbfs)


def loudest(samples: np.ndarray) -> float:
    """RMS of the loudest 20 ms, in dBFS."""
    frames = samples[: samples.size // FRAME * FRAME].reshape(-1, FRAME)
    return 10 * np.log10(np.square(frames).mean(axis=1).max())


class TestSilenceAndNoise:
    """No speech is detected in them."""

    @pytest.mark.parametrize("dbfs", [-70, -50, -30, -10])
    @pytest.mark.parametrize("slope", [0, 1, 2], ids=["white", "pink", "brown"])
    def test_noise(self, slope, dbfs):
        assert not activity(noise(40, slope, dbfs)).speech.any()

    def test_noise_that_sets_in_grows_and_ends(self):
        sound = noise(50, 0, -20)
        sound[: 10 * RATE] = 0
        sound[20 * RATE : 30 * RATE] *= 10
        sound[40 * RATE :] *= 0.001
        assert not activity(sound).speech.any()

    @pytest.mark.parametrize("dbfs", [-60, -20])
    @pytest.mark.parametrize("hertz", [50, 60, 100, 400])
    def test_hum(self, hertz, dbfs):
        at = 2 * np.pi * hertz * np.arange(30 * RATE) / RATE
        hum = sum(np.sin(at * k) / k for k in (1, 2, 3, 5))
        assert not activity(at_level(hum, dbfs)).speech.any()

    def test_digital_silence_dither_and_clicks(self):
        silence = np.zeros(30 * RATE, np.float32)
        assert not activity(silence).speech.any()
        assert not activity(silence + np.float32(0.3)).speech.any()
        silence[100::RATE] = 0.9  # amid a frame
        assert not activity(silence).speech.any()
        dither = np.random.default_rng(0).integers(-1, 2, 30 * RATE) / 32768
        assert not activity(dither.astype(np.float32)).speech.any()


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    """Where there is speech in the long recording."""
    return activity(recording("long.flac")).speech


class TestSpeech:
    @pytest.mark.parametrize("name", RECORDINGS)
    def test_loud_or_quiet(self, name):
        """Down to a loudest frame of -65 dBFS, and off centre, all of it is one stretch of it."""
        samples = recording(name)
        (usual,) = spans(samples)
        for dbfs in (-50, -60, -65):
            quiet = samples * np.float32(10 ** ((dbfs - loudest(samples)) / 20))
            for offset in (0, 0.1):
                (span,) = spans(quiet + np.float32(offset))
                assert abs(span.first - usual.first) <= 15
                assert abs(span.last - usual.last) <= 15

    def test_quiet_speech_beside_loud(self):
        """40 dB quieter than the speaker before and after, after pauses of a second."""
        loud, quiet = recording("flite_11.flac"), recording("espeak_03.flac")
        quiet = quiet * np.float32(10 ** ((loudest(loud) - 40 - loudest(quiet)) / 20))
        pause = np.zeros(RATE, np.float32)
        found = spans(np.concatenate([loud, pause, quiet, pause, loud]))
        start = (loud.size + RATE) // FRAME
        assert len(found) == 3
        assert start - 15 <= found[1].first <= start + 25
        assert -25 <= found[1].last - start - quiet.size // FRAME <= 25

    @pytest.mark.parametrize("slope", [0, 1, 2], ids=["white", "pink", "brown"])
    @pytest.mark.parametrize("name", RECORDINGS)
    def test_over_steady_noise(self, name, slope):
        """10 dB above it, within two seconds of it on both sides."""
        samples = recording(name)
        speech = np.pad(samples, 2 * RATE)
        level = 10 * np.log10(np.square(samples).mean()) - 10
        (found,) = spans(speech + noise(speech.size / RATE, slope, level))
        (usual,) = spans(speech)
        assert abs(found.first - usual.first) <= 15
        assert abs(found.last - usual.last) <= 15

    @pytest.mark.parametrize("decibels", [15, 10, 5])
    def test_none_is_lost_in_noise(self, clean, decibels):
        """All that is detected of clean speech is over white noise and babble, too, give or take
        0.3 s beside a pause."""
        samples = recording("long.flac")
        everybody = np.concatenate([recording(name) for name in RECORDINGS])
        for background in (0.0, everybody):
            noisy = over(samples, background, decibels, np.random.default_rng(1))
            assert not (clean & ~spread(activity(noisy).speech, 15, 15)).any()

    def test_a_single_word(self):
        """The first of "one six four", half a second with what is around it; and a fifth of one."""
        word = recording("festival_12.flac")[: RATE // 2 + 2000]
        for samples in (word, np.pad(word, RATE), recording("short.wav")):
            assert activity(samples).speech.any()

    @pytest.mark.parametrize("name", RECORDINGS[::3])
    def test_wherever_blocks_end(self, name):
        """One stretch of speech, whose edges do not depend on where those of the blocks are."""
        samples, edge = recording(name), BLOCK_FRAMES * FRAME
        (usual,) = spans(np.pad(samples, 5 * RATE))
        length = usual.last - usual.first
        for before in (0, 3, 6, length // 3, length // 2, length - 8, length - 2):
            pad = edge - (usual.first - 5 * RATE // FRAME + before) * FRAME
            (found,) = spans(np.pad(samples, (pad, 5 * RATE)))
            assert abs(found.first + before - BLOCK_FRAMES) <= 4
            assert abs(found.last - found.first - length) <= 5


#: a chord that is as a vowel to Silero VAD, and sweeps of five seconds that are as speech
LIKE_A_VOICE = [pytest.param(STEADY, 630, 1, id="chord"), pytest.param(LIVELY, 171, 3, id="sweeps")]


class TestVoice:
    """Speech is there without low frequencies, too."""

    @pytest.mark.parametrize(("makers", "index", "seed"), LIKE_A_VOICE)
    def test_what_has_one_in_low_frequencies_alone_is_none(self, makers, index, seed, monkeypatch):
        samples = sound(makers, index, seed).samples
        assert not activity(samples).speech.any()
        monkeypatch.setattr("mlx_speech.transcription.vad.LOW_HERTZ", 0)
        assert activity(samples).speech.sum() > 60

    @pytest.mark.parametrize(("makers", "index", "seed"), LIKE_A_VOICE)
    def test_speech_behind_it(self, makers, index, seed):
        """A fifth of a second behind it."""
        before = np.pad(sound(makers, index, seed).samples, (0, RATE // 5))
        (usual,) = spans(recording("flite_11.flac"))
        (found,) = spans(np.append(before, recording("flite_11.flac")))
        assert abs(found.first - before.size // FRAME - usual.first) <= 15
        assert abs(found.last - before.size // FRAME - usual.last) <= 15

    @pytest.mark.parametrize("name", RECORDINGS)
    def test_over_a_telephone(self, name):
        """Which carries 300 to 3,400 Hz; a first sound that is low may be missed."""
        samples = recording(name)
        spectrum, hertz = np.fft.rfft(samples), np.fft.rfftfreq(samples.size, 1 / RATE)
        spectrum[(hertz < 300) | (hertz > 3400)] = 0
        (usual,) = spans(samples)
        (found,) = spans(np.fft.irfft(spectrum, samples.size).astype(np.float32))
        assert abs(found.first - usual.first) <= 20
        assert abs(found.last - usual.last) <= 15


class TestThreshold:
    def test_it_is_what_begins_speech(self):
        samples = over(recording("espeak_04.flac"), 0.0, 0, np.random.default_rng(0))
        shares = [activity(samples, threshold=p).speech.mean() for p in (0.1, 0.5, 0.99, 1.0)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > shares[2]
        assert shares[3] == 0

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "high"])
    def test_probabilities_alone(self, threshold):
        with pytest.raises(InputError, match="vad_threshold"):
            ChunkOptions(vad_threshold=threshold)


@pytest.fixture(scope="module")
def minutes() -> np.ndarray:
    """Nearly three, of speech and pauses, over some noise."""
    samples = np.concatenate([recording("long.flac"), recording("espeak_03.flac")])
    return over(np.tile(samples, 2)[: 170 * RATE + 200], 1.0, 20, np.random.default_rng(0))


@pytest.fixture(scope="module")
def whole(minutes) -> SpeechActivity:
    """Their activity, pushed as usual."""
    return activity(minutes)


class TestStreaming:
    @pytest.mark.parametrize("size", [1, 159, 160, 320, 479, 480, 16159, 100000])
    def test_as_many_frames_as_the_encoder(self, tiny, size):
        _, processor = tiny
        samples = noise(size / RATE + 1, 0)[:size]
        told = activity(samples)
        if size > 256:
            features = processor.audio_processor(mx.array(samples))["input_features"]
            assert told.speech.size == features.shape[1]
        assert told.speech.size == told.level.size == (size + 160) // FRAME

    def test_pushes_do_not_matter(self, minutes, whole):
        assert 0.3 < whole.speech.mean() < 0.99
        for step in (317, 5000, 70001, minutes.size):
            parts = activity(minutes, step)
            assert (parts.speech == whole.speech).all()
            assert (parts.level == whole.level).all()

    @pytest.mark.parametrize("first", [1, 999, 1600, 2001, 5000])
    def test_parts_are_of_the_whole(self, minutes, whole, first):
        """From a block on that is whole, with what is before it."""
        part = activity(minutes, first=first)
        assert len(part) == len(whole) - first
        exact = -(-(first + WARM_UP_FRAMES) // BLOCK_FRAMES) * BLOCK_FRAMES
        assert (part.speech[exact - first :] == whole.speech[exact:]).all()
        assert (part.level[exact - first :] == whole.level[exact:]).all()

    def test_state_stays_small(self):
        vad, samples = RecordingVAD(), noise(10, 0)
        for _ in range(30):
            vad.push(samples)
            assert vad._samples.size < (BLOCK_FRAMES + WARM_UP_FRAMES) * FRAME + 12 * RATE


class TestLetters:
    def told(self, letters: str, speech: str) -> str:
        masks = (np.array([c != "." for c in mask]) for mask in (speech, letters))
        return "".join("#" if frame else "." for frame in widened(*masks))

    def test_speech_needs_none(self):
        assert self.told("." * 10, "..####....") == "..####...."

    def test_those_beside_it_are_of_it(self):
        early, late = "a" * 10, "a" * 30
        speech = "." * 10 + "#" * 9 + "." * 30
        assert self.told(early + "." * 9 + late, speech) == (
            "." * (10 - EARLY_FRAMES) + "#" * (EARLY_FRAMES + 9 + LATE_FRAMES) + "." * 14
        )

    def test_far_from_it_they_are_none(self):
        assert "#" not in self.told("a" * 50, "." * 50)

    @pytest.mark.parametrize("lag", [0, 30, 90])
    def test_pushes_do_not_matter(self, lag):
        """However much is pushed at a time, and however late the head is."""
        samples = recording("long.flac")[: 80 * RATE]
        count = samples.size // FRAME
        letters = np.random.default_rng(0).random(count) < 0.1
        level = np.arange(count, dtype=np.float32)

        def found(step: int) -> list[Span]:
            finder = SpanFinder(ChunkOptions(chunk_duration=9, min_silence=0.4), 15)
            told, result = 0, []
            for start in range(0, count, step):
                end, last = start + step, start + step >= count
                known = count if last else max(told, end - lag)
                heads = SpeechActivity(letters[told:known], level[told:known])
                part = mx.array(samples[start * FRAME : end * FRAME])
                result += finder.push(part, heads, last=last)
                told = known
            return result

        whole = found(count)
        assert len(whole) > 10
        assert found(7) == found(400) == whole

    def test_without_vad_all_is_speech(self):
        finder = SpanFinder(ChunkOptions(vad=False), 1)
        (span,) = finder.push(mx.zeros(5 * RATE), last=True)
        assert (span.start, span.first, span.last, span.end) == (0, 0, 250, 250)


class TestCTC:
    def test_blanks_and_spaces_are_no_speech(self):
        logits = np.full((4, 5), -9.0, np.float32)
        logits[range(4), [0, 3, 4, 1]] = 9.0
        activity = ctc_vad(mx.array(logits), blank=0, space=4)
        assert activity.speech.tolist() == [False, True, False, True]
        np.testing.assert_allclose(activity.level, [0, 1, -1, 1], atol=1e-3)
        assert ctc_vad(mx.array(logits), blank=1).speech.tolist() == [True, True, True, False]

    def test_no_frames(self):
        assert len(ctc_vad(mx.zeros((0, 348)), space=4)) == 0

    def test_half_precision(self):
        logits = mx.random.normal((50, 20), key=mx.random.key(0)).astype(mx.bfloat16)
        activity = ctc_vad(logits)
        assert activity.level.dtype == np.float32
        assert (activity.speech == np.array(mx.argmax(logits, axis=-1) != 0)).all()
