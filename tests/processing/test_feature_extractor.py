"""Recordings as any kind of array, and settings of feature extractors that make no sense."""

from __future__ import annotations

import functools
import http.server
import json
import math
import threading

import mlx.core as mx
import numpy as np
import pytest
from conftest import find_recording

from mlx_speech import (
    AudioError,
    CheckpointError,
    GraniteSpeechFeatureExtractor,
    InputError,
    Speech2TextFeatureExtractor,
    UnsupportedOptionError,
    load_audio,
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
        [SAMPLES[None]],
        [[SAMPLES]],
        STEREO.T[:1],
        {"array": SAMPLES, "sampling_rate": 16000},
        [{"path": "talk.wav", "array": SAMPLES.tolist(), "sampling_rate": 16000.0}],
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
        ([None], "audio is no samples, but of type NoneType: give one or more float arrays, or"),
        (None, "audio is no samples, but of type NoneType"),
        ([SAMPLES, STEREO.T], "not mono"),
        ([1, 2, 3], "audio samples are .*int64; expected floats"),
        ("talk.wav", "talk.wav does not exist"),
        (["talk.wav"], "talk.wav does not exist"),
        ({"array": SAMPLES}, "audio is no samples, but of type dict"),
        ({"array": SAMPLES, "sampling_rate": "fast"}, "sampling_rate is 'fast', but must be an"),
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


NAME = "synthetic/espeak_04.flac"


class Decoder:
    """What newer versions of `datasets` have for a recording."""

    def __init__(self, samples: np.ndarray, rate: int):
        self._items = {"array": samples, "sampling_rate": rate}

    def get_all_samples(self) -> None: ...

    def __getitem__(self, name: str):
        return self._items[name]


class TestRates:
    @pytest.mark.parametrize("extractor", EXTRACTORS, ids=lambda e: type(e).__name__)
    def test_files_are_read_at_the_rate_that_is_needed(self, extractor):
        path = find_recording(NAME)
        extractor = type(extractor)(sampling_rate=8000)
        expected = extractor(load_audio(path, target_sampling_rate=8000))
        for source in (path, str(path), [path]):
            found = extractor(source)["input_features"]
            assert mx.array_equal(found, expected["input_features"]).item()

    def test_addresses(self):
        path = find_recording(NAME)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=path.parent)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/{path.name}"
            found = EXTRACTORS[0]([address, path])["input_features"]
            server.shutdown()
        assert mx.abs(found[0] - found[1]).max().item() < 1e-3

    def test_granite_speech_resamples(self):
        """Each recording at the rate that it comes with, or else at that of the call."""
        extractor, other = EXTRACTORS[0], np.repeat(SAMPLES, 3)
        resampled = load_audio(other, 48000)
        expected = extractor([resampled, SAMPLES])["input_features"]
        alone = extractor(resampled)["input_features"]
        assert not mx.array_equal(alone, extractor(other)["input_features"])
        mixed = [other, {"array": SAMPLES, "sampling_rate": 16000}]
        assert mx.array_equal(extractor(mixed, sampling_rate=48000)["input_features"], expected)
        mixed = [Decoder(other, 48000), SAMPLES]
        assert mx.array_equal(extractor(mixed)["input_features"], expected)
        with pytest.raises(AudioError, match="sampling_rate"):
            extractor(SAMPLES, sampling_rate=-1)

    def test_speech_to_text_refuses(self):
        extractor, message = EXTRACTORS[1], "rate of 48000 Hz, this checkpoint needs 16000 Hz"
        with pytest.raises(InputError, match=message):
            extractor(SAMPLES, sampling_rate=48000)
        with pytest.raises(InputError, match=message):
            extractor([{"array": SAMPLES, "sampling_rate": 48000}])


class TestPad:
    """Two recordings, of 1 and 3 frames of 2 numbers; all cases are compared in tests/parity."""

    FEATURES = ([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])

    def padded(self, **options):
        extractor = Speech2TextFeatureExtractor(padding_value=-1.0)
        return extractor.pad([{"input_features": rows} for rows in self.FEATURES], **options)

    def test_to_the_longest(self):
        batch = self.padded()
        gap = [-1.0, -1.0]
        assert batch.input_features.tolist() == [[[1.0, 2.0], gap, gap], self.FEATURES[1]]
        assert batch.attention_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
        assert batch.attention_mask.dtype == mx.int32

    def test_lengths(self):
        def shape(**options):
            return self.padded(**options).input_features.shape

        assert shape(pad_to_multiple_of=4) == (2, 4, 2)
        assert shape(padding="max_length", max_length=5) == (2, 5, 2)
        assert shape(padding="max_length", max_length=5, pad_to_multiple_of=4) == (2, 8, 2)
        assert shape(max_length=2, truncation=True) == (2, 2, 2)

    def test_what_is_not_padded(self):
        rows = self.padded(padding=False, return_tensors=None)
        assert [row.shape for row in rows.input_features] == [(1, 2), (3, 2)]
        assert self.padded(padding_value=0.5).input_features[0, 2].tolist() == [0.5, 0.5]
        assert list(self.padded(return_attention_mask=False)) == ["input_features"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"padding": False}, "the recordings differ in length"),
            ({"padding": "up"}, "padding is 'up', but must be True, False, 'longest'"),
            ({"padding": "max_length"}, "padding='max_length' needs max_length"),
            ({"truncation": True}, "truncation needs max_length"),
            ({"max_length": 0}, "max_length is 0"),
            ({"padding_value": "x"}, "padding_value is 'x'"),
            ({"return_attention_mask": "x"}, "return_attention_mask is 'x', but must be true"),
            ({"truncation": "do_not_truncate", "max_length": 2}, "truncation is 'do_not_truncate'"),
            ({"pad_to_multiple_of": "x"}, "pad_to_multiple_of is 'x'"),
            ({"return_tensors": "tf"}, "return_tensors='tf'"),
        ],
        ids=str,
    )
    def test_what_cannot_be_asked_for(self, options, message):
        with pytest.raises((InputError, UnsupportedOptionError), match=f"^{message}"):
            self.padded(**options)

    @pytest.mark.parametrize("features", [{}, [], {"input_values": [1.0]}, 5, [5]])
    def test_what_is_no_features(self, features):
        with pytest.raises(InputError, match=r"(be padded|to pad)\b"):
            EXTRACTORS[0].pad(features)


@pytest.mark.parametrize("kind", [type(extractor) for extractor in EXTRACTORS])
class TestFiles:
    OPTIONS = {"sampling_rate": 8000, "padding_value": 0.5}  # noqa: RUF012

    def test_round_trip(self, kind, tmp_path):
        extractor = kind(**self.OPTIONS)
        extractor.save_pretrained(tmp_path)
        extractor.to_json_file(tmp_path / "x.json")
        assert [file.name for file in sorted(tmp_path.iterdir())] == [
            *("preprocessor_config.json", "x.json"),
        ]
        assert kind.from_pretrained(tmp_path) == extractor != kind()
        assert kind.from_json_file(tmp_path / "x.json") == extractor
        assert kind.from_pretrained(str(tmp_path / "x.json")) == extractor
        (tmp_path / "whole.json").write_text(json.dumps({kind.key: extractor.to_dict()}))
        assert kind.from_pretrained(tmp_path / "whole.json") == extractor
        assert kind.from_dict(extractor.to_dict()) == extractor

    def test_options(self, kind, tmp_path):
        kind().save_pretrained(tmp_path)
        options = {**self.OPTIONS, "token": False, "local_files_only": True}
        assert kind.from_pretrained(tmp_path, **options) == kind(**self.OPTIONS)
        assert kind.from_dict({}, **self.OPTIONS) == kind(**self.OPTIONS)
        with pytest.raises(InputError, match=r"^feature_extractor_dict is 5, but must be an obj"):
            kind.from_dict(5)
        with pytest.raises(CheckpointError, match=r"none/x.json: cannot be written: No such file"):
            kind().to_json_file(tmp_path / "none" / "x.json")
        with pytest.raises(InputError, match=r"has no option colour, but .*sampling_rate"):
            kind.from_pretrained(tmp_path, colour="red")
        with pytest.raises(InputError, match=r"^padding_value is 'x'"):
            kind.from_pretrained(tmp_path, padding_value="x")


def test_options_count_more_than_what_is_nested():
    data = {"melspec_kwargs": {"n_mels": 40, "n_fft": 600}}
    extractor = GraniteSpeechFeatureExtractor.from_dict(data, n_mels=20)
    assert (extractor.n_mels, extractor.n_fft) == (20, 600)
    assert extractor.melspec_kwargs["n_mels"] == extractor.feature_size == 20
    assert extractor(mx.zeros(16000))["input_features"].shape[2] == 40
