"""Recordings as any kind of array, and settings of feature extractors that make no sense."""

from __future__ import annotations

import json
import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech import (
    AudioError,
    CheckpointError,
    GraniteSpeechFeatureExtractor,
    InputError,
    Speech2TextFeatureExtractor,
)

SAMPLES = (np.sin(np.arange(8000) * 0.05) * 0.25).astype(np.float32)
STEREO = np.stack([SAMPLES, -SAMPLES], axis=1)
EXTRACTORS = (GraniteSpeechFeatureExtractor(), Speech2TextFeatureExtractor())


class Tensor:
    """An array of another library, as PyTorch's are."""

    def __init__(self, array: np.ndarray):
        self._array = array

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._array


def read_only() -> np.ndarray:
    array = SAMPLES.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=lambda extractor: type(extractor).__name__)
@pytest.mark.parametrize(
    "audio",
    [
        STEREO[:, 0],
        SAMPLES[::-1][::-1],
        SAMPLES.astype(">f4"),
        SAMPLES.astype(">f8"),
        SAMPLES.astype(np.float64),
        SAMPLES.astype(np.longdouble),
        read_only(),
        memoryview(SAMPLES),
        mx.array(STEREO)[:, 0],
        Tensor(SAMPLES),
        [Tensor(SAMPLES)],
        SAMPLES.tolist(),
        [SAMPLES.tolist()],
        SAMPLES[None],
        STEREO.T[:1],
    ],
    ids=lambda audio: type(audio).__name__,
)
def test_arrays_of_any_kind(extractor, audio):
    expected = extractor(mx.array(SAMPLES))["input_features"]
    assert mx.array_equal(extractor(audio)["input_features"], expected).item()


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=lambda extractor: type(extractor).__name__)
@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ((SAMPLES * 30000).astype(np.int16), "audio samples are .*int16; expected floats"),
        ((SAMPLES * 30000).astype(">i2"), "audio samples are .*int16; expected floats"),
        (SAMPLES.astype(complex), "audio samples are .*complex64"),
        (SAMPLES > 0, "audio samples are .*bool"),
        (SAMPLES[None, None], "not mono"),
        (np.array([0.5, None]), "audio is no samples, but of type ndarray"),
        (np.array(["a"]), "audio is no samples, but of type ndarray"),
        ([None], "audio is no samples, but of type list"),
        ("talk.wav", "audio is no samples, but of type str"),
        ({"array": SAMPLES}, "audio is no samples, but of type dict"),
        (5, "audio is no samples, but of type int"),
        ([], "no audio given"),
    ],
    ids=str,
)
def test_what_is_no_recording(extractor, audio, message):
    with pytest.raises((AudioError, InputError), match=message):
        extractor(audio)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_rate": 0}, "sampling_rate is 0, but must be an integer, at least 1000"),
        ({"sampling_rate": 10**9}, "sampling_rate is 1000000000, .* at most 192000"),
        ({"sampling_rate": [16000, 8000]}, "sampling_rate is .16000, 8000., but must be an"),
        ({"num_mel_bins": -1}, "num_mel_bins is -1"),
        ({"num_mel_bins": 10**9}, "num_mel_bins is 1000000000, .* at most 1024"),
        ({"padding_value": math.nan}, "padding_value is nan, but must be a finite number"),
        ({"padding_value": 2**64}, "padding_value is 18446744073709551616"),
        ({"dither": -1.0}, "dither is -1.0, .* at least 0"),
        ({"normalize_means": "no"}, "normalize_means is 'no', but must be true or false"),
    ],
    ids=str,
)
def test_impossible_settings(s2t_copy, settings, message):
    """By name in the library, and with the file where they stand in one."""
    with pytest.raises(InputError, match=f"^{message}"):
        Speech2TextFeatureExtractor(**settings)
    file = s2t_copy / "processor_config.json"
    file.write_text(json.dumps({"feature_extractor": settings}))
    with pytest.raises(CheckpointError, match=f"^{file}: feature_extractor: {message}"):
        Speech2TextFeatureExtractor.from_pretrained(s2t_copy)
    file.write_text(json.dumps({"feature_extractor": 5}))
    with pytest.raises(CheckpointError, match=f"^{file}: feature_extractor is 5, but must"):
        Speech2TextFeatureExtractor.from_pretrained(s2t_copy)
