"""Log-mel features: of a recording, of its parts, and what has none."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, find_recording

from mlx_speech import (
    AudioError,
    CheckpointError,
    GraniteSpeechFeatureExtractor,
    load_audio,
)
from mlx_speech.audio import SAMPLING_RATE, open_recording
from mlx_speech.audio import recording as recording_module


def noise(size: int) -> np.ndarray:
    """Loud and quiet in turn, so that the floor, 80 dB below the loudest, counts."""
    random = np.random.default_rng(size)
    return (random.normal(0, 0.1, size) * 10.0 ** -(np.arange(size) // 3000 % 7)).astype(np.float32)


def streamed(extractor, samples, chunk_frames: int) -> list[mx.array]:
    with open_recording(samples, SAMPLING_RATE) as recording:
        return list(extractor.stream(recording, chunk_frames))


def assert_equal_to_the_whole(extractor, samples, chunk_frames: int) -> None:
    parts = streamed(extractor, samples, chunk_frames)
    expected = extractor.log_mel(mx.array(samples))
    assert all(len(part) == chunk_frames for part in parts[:-1])
    assert len(parts) == max(1, -(-len(expected) // chunk_frames))
    found = mx.concatenate(parts)
    assert found.dtype == mx.float32
    assert found.shape == expected.shape
    if found.size:
        assert mx.abs(found - expected).max().item() <= 1e-6


@pytest.mark.parametrize("chunk_frames", [1, 2, 7, 50, 1500])
def test_equal_to_the_whole_at_any_length(chunk_frames):
    extractor = GraniteSpeechFeatureExtractor()
    edges = 320 * chunk_frames if chunk_frames < 1500 else 16000
    sizes = {257, 319, 320, 321, 480, 640, 1000}
    sizes |= {n * edges + d for n in (1, 2, 3) for d in (-257, -161, -160, -1, 0, 1, 159, 160, 161)}
    for size in sorted(s for s in sizes if s > 256):
        assert_equal_to_the_whole(extractor, noise(size), chunk_frames)


@pytest.mark.parametrize(
    "options",
    [
        {"n_fft": 400, "hop_length": 400},
        {"hop_length": 320, "n_mels": 40},
        {"n_fft": 511, "hop_length": 100, "win_length": 300},
        {"n_fft": 1024, "hop_length": 80, "win_length": 1024},
    ],
)
def test_other_parameters(options):
    extractor = GraniteSpeechFeatureExtractor(melspec_kwargs=options)
    for size in (600, 1023, 1600, 1601, 3999, 4000, 8000):
        for chunk_frames in (1, 3, 50):
            assert_equal_to_the_whole(extractor, noise(size), chunk_frames)


@pytest.mark.parametrize("chunk_frames", [3, 1500])
def test_the_ends_are_mirrored(chunk_frames):
    """As if the samples came with the mirrored ones on both sides, and nothing were beyond."""
    # the last frame is kept, and centred 5 samples before the end
    samples = np.random.default_rng(0).normal(0, 0.1, 16_165).astype(np.float32)
    extractor = GraniteSpeechFeatureExtractor()
    found = mx.concatenate(streamed(extractor, samples, chunk_frames))
    # 2 frames of mirror image, a whole number of hops, on either side
    padded = np.pad(samples, (640, 640), mode="reflect")
    expected = mx.concatenate(streamed(extractor, padded, chunk_frames))[2:-2]
    assert mx.abs(found - expected).max().item() < 1e-5


def test_a_real_recording():
    samples = np.array(load_audio(find_recording("synthetic/long.flac")))
    extractor = GraniteSpeechFeatureExtractor()
    assert_equal_to_the_whole(extractor, samples, 1500)
    assert len(streamed(extractor, samples, 1500)) == 4


@pytest.mark.parametrize("at", [0, 5000, 15_999])
def test_the_loudest_of_all_parts_sets_the_floor(at):
    """16000 samples are 101 frames; the last of them, which is dropped, counts as well."""
    samples = np.full(16_000, 1e-7, np.float32)
    samples[at] = 0.9
    extractor = GraniteSpeechFeatureExtractor()
    assert_equal_to_the_whole(extractor, samples, 10)
    parts = streamed(extractor, samples, 10)
    lowest = {part.min().item() for part in parts}
    assert len(lowest) == 1
    silent = streamed(extractor, np.full(16_000, 1e-7, np.float32), 10)
    assert lowest.pop() > mx.concatenate(silent).max().item()


def test_a_click_in_the_dropped_frame_alone():
    """The last frame, 25 ms around sample 16000, has an odd number; its neighbour hears nothing."""
    options = {"win_length": 100}
    extractor = GraniteSpeechFeatureExtractor(melspec_kwargs=options)
    samples = np.full(16_000, 1e-7, np.float32)
    samples[15_995] = 0.9
    assert_equal_to_the_whole(extractor, samples, 10)
    parts = mx.concatenate(streamed(extractor, samples, 10))
    assert parts.shape == (50, 160)
    assert parts.min().item() == parts.max().item() > -1  # all of it at the floor


@pytest.mark.parametrize("size", [1, 100, 256])
def test_too_short(size):
    extractor, samples = GraniteSpeechFeatureExtractor(), np.zeros(size, np.float32)
    with pytest.raises(AudioError) as expected:
        extractor.log_mel(mx.array(samples))
    with (
        open_recording(samples, SAMPLING_RATE) as recording,
        pytest.raises(AudioError, match=f"of {size} samples is too short") as found,
    ):
        next(extractor.stream(recording))
    assert str(found.value) == str(expected.value)


def test_one_pass_where_one_part_is_enough(monkeypatch):
    """The samples are read once, and the first part of a longer recording is not computed again."""
    extractor = GraniteSpeechFeatureExtractor()
    for seconds, reads in ((25, 1), (30, 1), (70, 6)):
        with open_recording(noise(seconds * SAMPLING_RATE), SAMPLING_RATE) as recording:
            ranges = []

            def read(start, end, original=recording.read, ranges=ranges):
                ranges.append((start, end))
                return original(start, end)

            monkeypatch.setattr(recording, "read", read)
            list(extractor.stream(recording))
        assert len([r for r in ranges if r[1] - r[0] > 1000]) == reads


def test_memory_does_not_hold_the_features(monkeypatch):
    monkeypatch.setattr(recording_module, "_MEMORY_SAMPLES", 1000)
    extractor, total = GraniteSpeechFeatureExtractor(), 0
    with open_recording(noise(240 * SAMPLING_RATE), SAMPLING_RATE) as recording:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        for part in extractor.stream(recording, 100):
            mx.eval(part)
            total += part.nbytes
        peak = mx.get_peak_memory() - before
    # a part takes 1.4 to 2.7 MB, as the scheduler likes
    assert peak < total == 240 * 50 * 160 * 4


class TestFeatures:
    def test_too_short(self):
        extractor = GraniteSpeechFeatureExtractor()
        with pytest.raises(AudioError, match="256 samples is too short: at least 257"):
            extractor(mx.zeros(256))
        assert extractor(mx.zeros(257))["input_features"].shape == (1, 1, 160)

    def test_integers_are_refused(self):
        with pytest.raises(AudioError, match="int16"):
            GraniteSpeechFeatureExtractor()(np.zeros(1000, np.int16))

    @pytest.mark.parametrize(
        ("sample", "message"),
        [(np.nan, "NaN or infinite"), (-np.inf, "NaN or infinite"), (3.0, "look like integers")],
    )
    @pytest.mark.parametrize("kind", [np.array, mx.array])
    def test_samples_are_checked_as_those_of_files(self, sample, message, kind):
        samples = np.zeros(1000, np.float32)
        samples[500] = sample
        with pytest.raises(AudioError, match=message):
            GraniteSpeechFeatureExtractor()([kind(np.zeros_like(samples)), kind(samples)])

    def test_a_hot_mix_is_accepted(self):
        GraniteSpeechFeatureExtractor()(np.linspace(-1.5, 1.4, 1000, dtype=np.float32))

    def test_stereo_is_refused(self):
        with pytest.raises(AudioError, match="not mono"):
            GraniteSpeechFeatureExtractor()([mx.zeros((2, 1000))])

    def test_each_recording_has_its_own_floor(self):
        """The reference takes lengths from a padded batch, and so lets one change another."""
        quiet = load_audio(find_recording("synthetic/short.wav")) * 1e-3
        loud = load_audio(find_recording("synthetic/espeak_00.flac"))
        extractor = GraniteSpeechFeatureExtractor()
        together = extractor([quiet, loud])["input_features"]
        alone = extractor(quiet)["input_features"][0]
        assert mx.array_equal(together[0, : len(alone)], alone).item()
        assert not together[0, len(alone) :].any().item()

    def test_other_parameters(self):
        extractor = GraniteSpeechFeatureExtractor.from_dict({"n_mels": 40, "hop_length": 320})
        assert extractor(mx.zeros(16000))["input_features"].shape == (1, 25, 80)

    def test_unknown_parameters(self):
        with pytest.raises(CheckpointError, match="unsupported power"):
            GraniteSpeechFeatureExtractor.from_dict({"melspec_kwargs": {"power": 1.0}})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"sampling_rate": 0}, "sampling_rate is 0, but must be an integer, at least 1000"),
            ({"sampling_rate": "16000"}, "sampling_rate is '16000', but must be an integer"),
            ({"n_fft": 2**20}, r"n_fft is 1048576, .* at most 8192"),
            ({"melspec_kwargs": {"n_mels": -80}}, "n_mels is -80"),
            ({"melspec_kwargs": {"hop_length": math.nan}}, "hop_length is nan"),
            ({"hop_length": 1}, "hop_length is 1, but must be at least a millisecond"),
            ({"win_length": 600}, "win_length is 600, but must be at most n_fft, 512"),
            ({"melspec_kwargs": [80]}, r"melspec_kwargs is \[80\], but must be an object"),
            ({"projector_window_size": 10**9}, "projector_window_size is 1000000000"),
            ({"projector_downsample_rate": 16}, "must be at most projector_window_size, 15"),
        ],
        ids=str,
    )
    def test_impossible_parameters(self, settings, message):
        with pytest.raises(CheckpointError, match=f"^preprocessor_config.json: .*{message}"):
            GraniteSpeechFeatureExtractor.from_dict(settings)

    def test_null_is_nothing(self):
        extractor = GraniteSpeechFeatureExtractor.from_dict({"melspec_kwargs": None})
        assert extractor.melspec_kwargs == GraniteSpeechFeatureExtractor().melspec_kwargs


FEATURES = dict(np.load(DATA / "reference" / "granite_features.npz"))


@pytest.mark.parametrize("name", sorted({n.rsplit(".", 1)[0] for n in FEATURES}))
def test_features_of_every_recording(tiny, name):
    """A fixed sample of each recording's features; all of them are compared in tests/parity."""
    _, processor = tiny
    audio = load_audio(find_recording(name))
    features = np.array(processor.audio_processor(audio)["input_features"][0])
    assert features.shape == tuple(FEATURES[f"{name}.shape"])
    stride = int(FEATURES[f"{name}.stride"])
    found = features.reshape(-1)[::stride]
    np.testing.assert_allclose(found, FEATURES[f"{name}.sample"], rtol=0, atol=1e-4)


def mel_of(hertz):
    return 2595 * np.log10(1 + hertz / 700)


def reference(samples: np.ndarray, n_fft: int, window: int, hop: int, n_mels: int) -> np.ndarray:
    """Frame by frame in float64, as librosa and torchaudio define it; the last odd one falls away
    after it counted for the greatest value."""
    hann = np.zeros(n_fft)
    left = (n_fft - window) // 2
    hann[left : left + window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(samples.astype(np.float64), n_fft // 2, mode="reflect")
    hertz = np.linspace(0, 8000, n_fft // 2 + 1)
    edges = 700 * (10 ** (np.linspace(0, mel_of(8000), n_mels + 2) / 2595) - 1)
    frames = []
    for start in range(0, len(padded) - n_fft + 1, hop):
        power = np.abs(np.fft.rfft(padded[start : start + n_fft] * hann)) ** 2
        bands = [
            power @ np.interp(hertz, edges[m : m + 3], [0, 1, 0], left=0, right=0)
            for m in range(n_mels)
        ]
        frames.append(np.log10(np.maximum(bands, 1e-10)))
    values = np.array(frames)
    values = np.maximum(values, values.max() - 8) / 4 + 1
    return values[: len(values) // 2 * 2].reshape(len(values) // 2, 2 * n_mels)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_fft": 400, "hop_length": 200, "n_mels": 40},
        {"n_fft": 512, "win_length": 301, "hop_length": 100, "n_mels": 64},
        {"n_fft": 1024, "win_length": 1024, "hop_length": 256},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1600, 4321, 16000])
def test_equal_to_numpy(options, size):
    values = {"n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80, **options}
    samples = noise(size)
    extractor = GraniteSpeechFeatureExtractor(melspec_kwargs=options)
    expected = reference(samples, *values.values())
    np.testing.assert_allclose(extractor.log_mel(mx.array(samples)), expected, rtol=0, atol=2e-4)
    found = mx.concatenate(streamed(extractor, samples, 7))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 4000.0])
def test_a_tone_is_loudest_in_its_band(hertz):
    samples = np.sin(2 * np.pi * hertz * np.arange(16000) / 16000).astype(np.float32)
    frame = np.array(GraniteSpeechFeatureExtractor().log_mel(mx.array(samples)))[20]
    centres = np.linspace(0, mel_of(8000), 82)[1:-1]
    nearest = np.abs(centres - mel_of(hertz)).argmin()
    assert abs(frame[:80].argmax() - nearest) <= 1
    assert abs(frame[80:].argmax() - nearest) <= 1
