"""Where there is speech: CTC head and energy, on speech, silence and noise."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_speech import load_audio
from mlx_speech.transcription.segmenter import Segmenter, Span
from mlx_speech.transcription.vad import (
    LINK_FRAMES,
    ONSET_FRAMES,
    REACH_FRAMES,
    RELEASE_FRAMES,
    SILENCE_DBFS,
    EnergyVAD,
    SpeechActivity,
    SpeechRegions,
    ctc_vad,
)

RATE = 16000
RECORDINGS = sorted(p.name for p in (DATA / "audio").glob("*_??.flac"))


def recording(name: str) -> np.ndarray:
    return np.array(load_audio(DATA / "audio" / name))


def energy(samples: np.ndarray, step: int = 30 * RATE) -> SpeechActivity:
    """The activity of samples pushed `step` at a time."""
    meter = EnergyVAD()
    parts = [meter.push(samples[i : i + step]) for i in range(0, samples.size, step)]
    parts.append(meter.finish())
    return SpeechActivity(
        *(np.concatenate([getattr(p, f) for p in parts]) for f in ("speech", "level"))
    )


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


def ctc(tiny, samples: np.ndarray) -> SpeechActivity:
    model, processor = tiny
    features = processor.audio_processor(mx.array(samples))["input_features"]
    return ctc_vad(model.encoder(features).ctc_logits[0], space=ord(" "))


def extents(letters: SpeechActivity, sound: np.ndarray, divisions=()) -> SpeechActivity:
    """Extents of letters and sound that are pushed in parts that end at `divisions`."""
    stage, told = SpeechRegions(), SpeechActivity.none()
    edges = [0, *sorted(d for d in divisions if d < len(letters)), len(letters)]
    for a, b in itertools.pairwise(edges):
        told += stage.push(letters[a:b], sound[a:b])
        assert len(told) <= b
    return told + stage.push(SpeechActivity.none(), np.zeros(0, bool), last=True)


def spans(letters: SpeechActivity, sound: SpeechActivity | None = None, **options) -> list[Span]:
    """The spans by letters and sound, or by sound alone, in which there are no windows."""
    window = 15 if sound else 1
    options = {"window": window, "max_frames": 450, "min_silence": 30} | options
    segmenter = Segmenter(**options)
    return segmenter.push(extents(letters, (sound or letters).speech)) + segmenter.finish()


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
        sounds = [noise(6, slope, -30) for slope in (0, 2)] + [recording("silence.flac")]
        for sound in sounds:
            assert spans(ctc(tiny, sound), energy(sound)) == []
            assert spans(energy(sound)) == []


class TestSpeech:
    @pytest.mark.parametrize("name", RECORDINGS)
    def test_loud_or_quiet(self, name):
        """Down to a loudest frame of -65 dBFS, all of it is one stretch of speech."""
        samples = recording(name)
        (usual,) = spans(energy(samples))
        for dbfs in (-50, -60, -65):
            quiet = samples * np.float32(10 ** ((dbfs - loudest(samples)) / 20))
            (span,) = spans(energy(quiet))
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
        found = spans(energy(np.concatenate([loud, pause, quiet, pause, loud])))
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
        (found,) = spans(energy(speech + noise(speech.size / RATE, slope, level)))
        (usual,) = spans(energy(speech))
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
        meter, samples = EnergyVAD(), noise(10, 0)
        for _ in range(20):
            meter.push(samples)
            assert meter._samples.size + meter._decibels.size < 2000


class TestCtc:
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


def frames(mask: np.ndarray) -> SpeechActivity:
    """Letters in these frames; of no two frames is the level the same."""
    return SpeechActivity(mask, np.arange(mask.size, dtype=np.float32))


def defined_extents(letters: list[bool], sound: list[bool]) -> list[bool]:
    """Frame by frame what `SpeechRegions` says that speech is."""

    def any_of(mask, start, end):
        return any(mask[max(0, start) : end])

    heard = [
        letter and any_of(sound, t - REACH_FRAMES, t + REACH_FRAMES + 1)
        for t, letter in enumerate(letters)
    ]

    def early(t):
        before = t
        for u in range(t, max(-1, t - REACH_FRAMES - 1), -1):
            if before - u > LINK_FRAMES + 1:
                break
            if sound[u]:
                return False
            before = u if heard[u] else before
        return any_of(sound, t, t + REACH_FRAMES + 1)

    return [
        any_of(heard, t - RELEASE_FRAMES, t + ONSET_FRAMES + 1)
        if sound[t]
        else heard[t] and not early(t)
        for t in range(len(letters))
    ]


@st.composite
def patterns(draw):
    """Any letters and sound of as many frames."""
    masks = []
    for longest in (20, 70):
        runs = st.tuples(st.integers(0, longest), st.integers(0, 3) | st.integers(0, 40))
        runs = list(itertools.chain(*draw(st.lists(runs, max_size=12))))
        masks.append(np.repeat(np.arange(len(runs)) % 2 == 1, runs))
    size = max(mask.size for mask in masks)
    return [np.pad(mask, (0, size - mask.size)) for mask in masks]


class TestSpeechExtents:
    @settings(max_examples=200, deadline=None)
    @given(patterns(), st.lists(st.integers(0, 800), max_size=8))
    def test_any_pattern(self, pattern, divisions):
        """As defined, every letter that sounds included, and the same however it is pushed."""
        letters, sound = pattern
        told = extents(frames(letters), sound)
        assert told.speech.tolist() == defined_extents(letters.tolist(), sound.tolist())
        assert told.speech[letters & sound].all()
        assert not told.speech[~letters & ~sound].any()
        assert (told.level == np.arange(letters.size)).all()
        for edges in (divisions, range(0, letters.size, 7)):
            parts = extents(frames(letters), sound, edges)
            assert (parts.speech == told.speech).all()
            assert (parts.level == told.level).all()

    @settings(max_examples=30, deadline=None)
    @given(patterns())
    def test_letters_need_sound_and_sound_needs_letters(self, pattern):
        letters, sound = pattern
        assert not extents(frames(letters), np.zeros_like(sound)).speech.any()
        assert not extents(frames(np.zeros_like(letters)), sound).speech.any()

    def told(self, letters: str, sound: str) -> str:
        mask = np.array([c == "a" for c in letters])
        speech = extents(frames(mask), np.array([c == "#" for c in sound])).speech
        return "".join("s" if s else "." for s in speech)

    def test_sound_tells_where_peaks_begin_and_end(self):
        """A word whose letters are in the middle of its sound."""
        letters = "." * 20 + "a..a" + "." * 30
        sound = "." * 10 + "#" * 25 + "." * 19
        assert self.told(letters, sound) == sound.replace("#", "s")

    def test_sound_far_from_letters_is_none(self):
        letters = "." * 50 + "a" + "." * 50
        assert self.told(letters, "#" * 101) == "." * 32 + "s" * 35 + "." * 34
        assert (ONSET_FRAMES, RELEASE_FRAMES) == (18, 16)

    def test_early_letters_do_not_count(self):
        """Those that come in the pause, before the sound of their word, do not fill it."""
        letters = "a" * 10 + "." * 20 + "aa" + "." * 20 + "a" * 10
        sound = "#" * 10 + "." * 42 + "#" * 10
        assert self.told(letters, sound) == sound.replace("#", "s")

    def test_late_letters_go_on(self):
        """Those that follow on sound count, sound or not: somebody speaks more and more faintly, or
        the noise hides it; even if there is sound soon, to which they would be early."""
        letters = "a" * 10 + "....aa" * 4 + "." * 20 + "a" * 10
        sound = "#" * 10 + "." * 44 + "#" * 10
        assert self.told(letters, sound) == letters[:34].replace("a", "s") + "." * 20 + "s" * 10

    def test_letters_without_sound_count_for_a_second(self):
        letters = "a" * 200
        told = self.told(letters, "#" * 10 + "." * 190)
        assert told == "s" * (10 + REACH_FRAMES) + "." * (190 - REACH_FRAMES)

    @pytest.mark.parametrize("first", ["a", "#"])
    @pytest.mark.parametrize("then", ["a", "#"])
    def test_frame_by_frame(self, first, then):
        """Nothing is told before all is known that it depends on, and nothing forgotten."""
        for far in (LINK_FRAMES, ONSET_FRAMES, RELEASE_FRAMES, REACH_FRAMES):
            for gap in (far - 1, far):
                runs = [REACH_FRAMES, 3, gap, 3, REACH_FRAMES]
                letters, sound = (
                    np.repeat([False, mark == first, False, mark == then, False], runs)
                    for mark in "a#"
                )
                told = extents(frames(letters), sound)
                parts = extents(frames(letters), sound, range(letters.size))
                assert (parts.speech == told.speech).all()

    def test_state_stays_small(self):
        stage, part = SpeechRegions(), np.arange(1000) % 50 < 30
        for _ in range(20):
            stage.push(frames(part), part)
            assert len(stage._letters) == len(stage._sound) < 300
