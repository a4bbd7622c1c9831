"""Kaldi's filter banks, against what the reference made of them and against their definition."""

from __future__ import annotations

import threading

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, TINY_S2T, edit_json, find_recording

from mlx_speech import (
    AudioError,
    InputError,
    Speech2TextFeatureExtractor,
    Speech2TextProcessor,
    load_audio,
)
from mlx_speech.processing import kaldi_fbank as fbank

GOLDEN = dict(np.load(DATA / "reference" / "tiny_s2t_golden.npz"))


@pytest.fixture(scope="module")
def processor() -> Speech2TextProcessor:
    return Speech2TextProcessor.from_pretrained(TINY_S2T)


def noise(length: int, seed: int = 0) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.normal(0, 0.1, length).astype(np.float32))


class TestFeatures:
    @pytest.mark.parametrize("index", range(3))
    def test_golden(self, processor, index):
        """All are within -4 and 4. The reference's float32 transform rounds the quietest bins."""
        inputs = processor(load_audio(find_recording(str(GOLDEN[f"{index}.file"]))))
        expected = GOLDEN[f"{index}.input_features"]
        difference = np.abs(np.array(inputs["input_features"][0]) - expected)
        assert difference.max() <= 1e-3
        assert difference.mean() <= 1e-6
        assert inputs["attention_mask"].tolist() == [[1] * len(expected)]

    def test_a_tone_in_closed_form(self):
        """A frame of a cosine on bin 32 has, there and in its neighbours, what theory says."""
        amplitude, bin_32 = 0.25, 1000.0
        time = np.arange(400) / 16000
        signal = (amplitude * np.cos(2 * np.pi * bin_32 * time)).astype(np.float32)
        got = np.array(fbank.fbank(mx.array(signal))[0])
        frame = signal.astype(np.float64) * 32768
        frame = frame - frame.mean()
        emphasised = np.array([frame[n] - 0.97 * frame[max(n - 1, 0)] for n in range(400)])
        povey = np.array([0.5 - 0.5 * np.cos(2 * np.pi * n / 399) for n in range(400)]) ** 0.85
        power = np.abs(np.fft.fft(emphasised * povey, 512)[:256]) ** 2
        mel = 1127 * np.log(1 + np.arange(256) * 31.25 / 700)
        low, high = (1127 * np.log(1 + hertz / 700) for hertz in (20, 8000))
        edges = np.linspace(low, high, 82)
        expected = [np.log(power @ np.interp(mel, edges[m : m + 3], [0, 1, 0])) for m in range(80)]
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-4)
        assert got.argmax() == np.abs(edges[1:-1] - mel[32]).argmin()

    @pytest.mark.parametrize(
        ("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16000, 98), (16079, 98), (16080, 99)]
    )
    def test_only_whole_frames_count(self, samples, frames):
        features = Speech2TextFeatureExtractor()(noise(samples))
        assert features["input_features"].shape == (1, frames, 80)
        assert features["attention_mask"].shape == (1, frames)

    @pytest.mark.parametrize("samples", [0, 1, 399])
    def test_too_short(self, samples):
        with pytest.raises(AudioError, match=f"of {samples} samples .* at least 400 .*25 ms"):
            Speech2TextFeatureExtractor()(mx.zeros(samples))

    def test_mean_and_deviation(self):
        features = np.array(Speech2TextFeatureExtractor()(noise(50000))["input_features"][0])
        np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-5)

    @pytest.mark.parametrize("means", [True, False])
    @pytest.mark.parametrize("deviations", [True, False])
    def test_what_is_normalised(self, means, deviations):
        raw = np.array(fbank.fbank(noise(9999)), np.float64)
        extractor = Speech2TextFeatureExtractor(normalize_means=means, normalize_vars=deviations)
        expected = raw - raw.mean(axis=0) * means
        expected = expected / raw.std(axis=0) if deviations else expected
        got = extractor(noise(9999))["input_features"][0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

    def test_without_normalisation(self):
        extractor = Speech2TextFeatureExtractor(do_ceptral_normalize=False)
        assert mx.array_equal(extractor(noise(9999))["input_features"][0], fbank.fbank(noise(9999)))

    @pytest.mark.parametrize("samples", [400, 16000, 700000])
    def test_silence_is_zero(self, samples):
        """Nothing to divide by; the logarithm's floor itself is not exact in binary."""
        raw = fbank.fbank(mx.zeros(samples))
        assert mx.allclose(raw, mx.array(np.log(np.finfo(np.float32).eps))).item()
        assert not Speech2TextFeatureExtractor()(mx.zeros(samples))["input_features"].any().item()

    def test_a_constant_without_subtracted_means_is_left(self):
        extractor = Speech2TextFeatureExtractor(normalize_means=False)
        features = extractor(mx.zeros(16000))["input_features"][0]
        assert mx.array_equal(features, fbank.fbank(mx.zeros(16000)))

    def test_a_batch_gives_what_single_recordings_give(self):
        extractor = Speech2TextFeatureExtractor(padding_value=-7.0)
        recordings = [noise(16000), mx.zeros(400), noise(30001, seed=1) * 1e-3, noise(700)]
        batch = extractor(recordings)
        assert batch["attention_mask"].dtype == mx.int32
        assert batch["input_features"].dtype == mx.float32
        for row, recording in enumerate(recordings):
            alone = extractor(recording)["input_features"][0]
            assert batch["attention_mask"][row].tolist() == [1] * len(alone) + [0] * (
                186 - len(alone)
            )
            assert mx.array_equal(batch["input_features"][row, : len(alone)], alone)
            assert (batch["input_features"][row, len(alone) :] == -7).all().item()

    def test_chunks_give_what_the_whole_gives(self, monkeypatch):
        recording = noise(100_000)
        whole = Speech2TextFeatureExtractor()(recording)["input_features"]
        for frames in (1, 7, 200, 622, 623):
            monkeypatch.setattr(fbank, "CHUNK_FRAMES", frames)
            chunked = Speech2TextFeatureExtractor()(recording)["input_features"]
            assert mx.abs(chunked - whole).max().item() <= 1e-6

    def test_memory_beyond_the_result_does_not_grow(self):
        def working_memory(seconds: int) -> int:
            recording = mx.zeros(16000 * seconds)
            mx.eval(recording)
            mx.clear_cache()
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            features = fbank.fbank(recording)
            mx.eval(features)
            return mx.get_peak_memory() - before - 2 * features.nbytes

        assert working_memory(164) <= 1.1 * working_memory(41)

    def test_in_another_thread(self):
        results = []

        def work():
            features = Speech2TextFeatureExtractor()(noise(9999))["input_features"]
            results.append(features.tolist())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        work()
        assert results[0] == results[1]

    def test_dither(self, monkeypatch):
        """Noise of that deviation, the same for the same seed, for a batch and alone."""
        extractor = Speech2TextFeatureExtractor(dither=4.0, do_ceptral_normalize=False)
        first = extractor(mx.zeros(90000), seed=3)["input_features"]
        assert mx.array_equal(first, extractor(mx.zeros(90000), seed=3)["input_features"])
        assert not mx.allclose(first, extractor(mx.zeros(90000), seed=4)["input_features"]).item()
        batch = extractor([noise(400), mx.zeros(90000)], seed=3)["input_features"]
        assert mx.array_equal(batch[1], first[0])
        loud = Speech2TextFeatureExtractor(dither=40.0, do_ceptral_normalize=False)
        louder = loud(mx.zeros(90000), seed=3)["input_features"] - first
        assert mx.allclose(louder, mx.array(2 * np.log(10)), atol=1e-4).item()
        mx.random.seed(0)
        unseeded = extractor(mx.zeros(90000))["input_features"]
        assert not mx.array_equal(unseeded, extractor(mx.zeros(90000))["input_features"])
        mx.random.seed(0)
        assert mx.array_equal(unseeded, extractor(mx.zeros(90000))["input_features"])
        monkeypatch.setattr(fbank, "CHUNK_FRAMES", 100)
        chunked = extractor(mx.zeros(90000), seed=3)["input_features"][0]
        # every frame has noise of its own
        assert len({tuple(frame) for frame in chunked.tolist()}) == len(chunked)

    def test_sampling_rate_is_checked(self):
        extractor = Speech2TextFeatureExtractor()
        extractor(noise(999), sampling_rate=16000)
        with pytest.raises(InputError, match=r"rate of 8000 Hz, .* 16000 Hz: resample"):
            extractor(noise(999), sampling_rate=8000)

    def test_what_is_no_audio(self):
        extractor = Speech2TextFeatureExtractor()
        with pytest.raises(AudioError, match="int16"):
            extractor(np.zeros(1000, np.int16))
        with pytest.raises(AudioError, match="not mono"):
            extractor([mx.zeros((2, 1000))])
        with pytest.raises(InputError, match="no audio"):
            extractor([])

    def test_options_of_a_checkpoint(self, s2t_copy):
        """From either file; processor_config.json counts."""
        options = {"sampling_rate": 8000, "num_mel_bins": 40, "normalize_vars": False}
        edit_json(s2t_copy / "preprocessor_config.json", feature_size=40, **options)
        assert Speech2TextFeatureExtractor.from_pretrained(s2t_copy).sampling_rate == 16000
        (s2t_copy / "processor_config.json").unlink()
        extractor = Speech2TextFeatureExtractor.from_pretrained(s2t_copy)
        assert {name: getattr(extractor, name) for name in options} == options
        assert extractor.do_ceptral_normalize
        assert extractor(noise(8000), sampling_rate=8000)["input_features"].shape == (1, 98, 40)


def reference(samples: np.ndarray, rate: int, n_mels: int) -> np.ndarray:
    """Kaldi's steps one after the other, frame by frame, in float64."""
    length, shift = rate * 25 // 1000, rate // 100
    n_fft = 2 ** int(np.ceil(np.log2(length)))
    mel = 1127 * np.log(1 + np.arange(n_fft // 2) * rate / n_fft / 700)
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (20, rate / 2))
    edges = np.linspace(low, high, n_mels + 2)
    povey = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))) ** 0.85
    frames = []
    for start in range(0, len(samples) - length + 1, shift):
        frame = samples[start : start + length].astype(np.float64) * 32768
        frame -= frame.mean()
        frame -= 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * povey, n_fft)[:-1]) ** 2
        bands = [
            power @ np.interp(mel, edges[m : m + 3], [0, 1, 0], left=0, right=0)
            for m in range(n_mels)
        ]
        frames.append(np.log(np.maximum(bands, np.finfo(np.float32).eps)))
    return np.array(frames)


@pytest.mark.parametrize(("rate", "n_mels"), [(16000, 80), (16000, 40), (8000, 23), (11000, 30)])
@pytest.mark.parametrize("frames", [1, 2, 7, None])
def test_equal_to_numpy(monkeypatch, rate, n_mels, frames):
    """Chunks of any number of frames; the filters' own rounding is all that differs."""
    if frames:
        monkeypatch.setattr(fbank, "CHUNK_FRAMES", frames)
    # loud, quiet and silent
    samples = np.array(noise(4321)) * 10.0 ** -(np.arange(4321) // 1000).astype(np.float32)
    samples[-800:] = 0
    found = np.array(fbank.fbank(mx.array(samples.astype(np.float32)), rate, n_mels))
    expected = reference(samples.astype(np.float32), rate, n_mels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
