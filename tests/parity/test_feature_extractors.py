"""Feature extractors as transformers has them: arguments, padding, files."""

from __future__ import annotations

import inspect
import json
import warnings

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers

import mlx_speech

NAMES = ["GraniteSpeechFeatureExtractor", "Speech2TextFeatureExtractor"]
LENGTHS = (9000, 30000, 16000)


def kinds(name: str):
    return getattr(mlx_speech, name), getattr(transformers, name)


def signal(length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)


def close(ours, expected, tolerance: float = 2e-3) -> None:
    """Equal shapes and values; the reference's Kaldi features are rounded to about 1e-3."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
class TestSettings:
    def test_arguments(self, name):
        """The documented ones, in their order and with their defaults."""
        ours, reference = (inspect.signature(kind).parameters for kind in kinds(name))
        documented = [p for p in reference.values() if p.kind is not p.VAR_KEYWORD]
        found = [*ours.values()][: len(documented)]
        assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in documented]

    def test_attributes_and_dictionary(self, name):
        ours, reference = (kind() for kind in kinds(name))
        expected = reference.to_dict()
        assert {key: ours.to_dict()[key] for key in expected} == expected
        assert json.loads(ours.to_json_string()) == ours.to_dict()
        for attribute, value in vars(reference).items():
            if attribute != "mel_filters":
                assert getattr(ours, attribute) == value
        assert ours.model_input_names == reference.model_input_names

    @pytest.mark.parametrize("file", ["preprocessor_config.json", "any.json"])
    def test_files_that_the_other_reads(self, name, file, tmp_path):
        """Each other's, with settings that are not the defaults."""
        ours, reference = kinds(name)
        options = {"sampling_rate": 8000, "padding_value": -1.0}
        options |= {"n_mels": 40, "hop_length": 100} if "Granite" in name else {"num_mel_bins": 40}
        whole = file == "preprocessor_config.json"
        for i, kind in enumerate((ours, reference)):
            made, folder = kind(**options), tmp_path / str(i)
            folder.mkdir()
            made.save_pretrained(folder) if whole else made.to_json_file(folder / file)
            assert [path.name for path in folder.iterdir()] == [file]
            source = folder if whole else folder / file
            for other in (ours, reference):
                read = other.from_pretrained if whole else other.from_json_file
                # reads melspec_kwargs, and takes the defaults all the same
                if kind is other is reference and "Granite" in name:
                    continue
                found = read(source).to_dict()
                assert {key: found[key] for key in made.to_dict() if key in found}.items() >= {
                    key: value for key, value in made.to_dict().items() if key in found
                }.items()

    def test_options_of_reading(self, name, tmp_path):
        ours, reference = kinds(name)
        ours().save_pretrained(tmp_path)
        options = {"padding_value": 0.5, "projector_window_size": 10}
        if "Granite" not in name:
            options = {"padding_value": 0.5, "do_ceptral_normalize": False}
        expected = reference.from_pretrained(tmp_path, **options).to_dict()
        found = ours.from_pretrained(tmp_path, **options).to_dict()
        assert {key: found[key] for key in expected} == expected
        dictionary = ours().to_dict()
        assert ours.from_dict(dictionary, **options).to_dict() == found


PADDING = {
    "longest": {"padding": True},
    "by its name": {"padding": "longest"},
    "not": {"padding": False},
    "by its name, not": {"padding": "do_not_pad"},
    "to a length": {"padding": "max_length", "max_length": 200},
    "to a length that is too short": {"padding": "max_length", "max_length": 60},
    "cut": {"padding": True, "max_length": 60, "truncation": True},
    "cut and filled": {"padding": "max_length", "max_length": 70, "truncation": True},
    "cut, not filled": {"padding": False, "max_length": 70, "truncation": True},
    "multiple": {"padding": True, "pad_to_multiple_of": 64},
    "cut to a multiple": {
        **{"padding": True, "max_length": 60, "truncation": True, "pad_to_multiple_of": 32}
    },
    "length and multiple": {"padding": "max_length", "max_length": 200, "pad_to_multiple_of": 128},
    "no mask": {"padding": True, "return_attention_mask": False},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", PADDING)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pad(name, case, side):
    """Of features; rows of one length become an array, if one is asked for."""
    ours, reference = (kind(padding_side=side, padding_value=-3.0) for kind in kinds(name))
    features = [np.random.default_rng(n).normal(0, 1, (n, 80)).astype(np.float32) for n in (50, 99)]
    options = PADDING[case]
    expected = reference.pad({"input_features": list(features)}, return_tensors="np", **options)
    as_lists = ours.pad({"input_features": features}, return_tensors=None, **options)
    assert list(as_lists) == list(expected)
    for key, rows in expected.items():
        for found, row in zip(as_lists[key], rows, strict=True):
            assert np.array_equal(np.array(found), row)
    one_by_one = [{"input_features": row} for row in features]
    ragged = len({len(row) for row in expected["input_features"]}) > 1
    if ragged:
        with pytest.raises(mlx_speech.InputError, match="the recordings differ in length"):
            ours.pad(one_by_one, **options)
    else:
        batch = ours.pad(one_by_one, **options)
        assert all(batch[key].tolist() == np.array(rows).tolist() for key, rows in expected.items())


@pytest.mark.parametrize(
    "case", sorted(PADDING.keys() - {"no mask", "to a length that is too short"})
)
@pytest.mark.parametrize("normalize", [True, False])
def test_speech_to_text(case, normalize):
    """What is cut off does not count for the statistics, nor does padding. In those left out
    the reference cannot normalise."""
    options = {"do_ceptral_normalize": normalize, "padding_value": 0.25}
    ours, reference = (kind(**options) for kind in kinds("Speech2TextFeatureExtractor"))
    audio = [signal(length) for length in LENGTHS]
    call = {"sampling_rate": 16000, **PADDING[case]}
    expected = reference(audio, **call)
    found = ours(audio, return_tensors=None, **call)
    assert list(found) == list(expected)
    for key, rows in expected.items():
        for each, row in zip(found[key], rows, strict=True):
            close(each, row)


def test_speech_to_text_by_position():
    """In the documented order: padding, max_length, truncation, pad_to_multiple_of, tensors, rate,
    mask."""
    ours, reference = (kind() for kind in kinds("Speech2TextFeatureExtractor"))
    audio = [signal(length) for length in LENGTHS]
    arguments = ("max_length", 80, True, 32, "np", 16000, True)
    found, expected = ours(audio, *arguments), reference(audio, *arguments)
    for key in expected:
        close(found[key], expected[key])


AUDIO = {
    "torch": lambda audio: torch.from_numpy(audio),
    "of one channel": lambda audio: torch.from_numpy(audio)[None],
    "listed": lambda audio: [torch.from_numpy(audio)],
    "of one channel each": lambda audio: [torch.from_numpy(audio)[None]] * 2,
    "numpy": lambda audio: audio,
    "batch": lambda audio: np.stack([audio, audio]),
    "float64": lambda audio: audio.astype(np.float64),
}


@pytest.mark.parametrize("kind", AUDIO)
def test_granite_speech(kind):
    ours, reference = (kind() for kind in kinds("GraniteSpeechFeatureExtractor"))
    audio = AUDIO[kind](signal(9000))
    expected = reference(audio, device="cpu")
    found = ours(audio, device="cpu")
    assert list(found) == list(expected)
    close(found["input_features"], expected["input_features"], 1e-4)
    close(found["input_features_mask"], expected["input_features_mask"])
    assert found.audio_embed_sizes == list(expected["audio_embed_sizes"])


@pytest.mark.parametrize("kind", ["list", "lists", "numpy", "numpy batch"])
def test_speech_to_text_audio(kind):
    ours, reference = (kind() for kind in kinds("Speech2TextFeatureExtractor"))
    samples = signal(5000)
    audio = {
        "list": samples.tolist(),
        "lists": [samples.tolist(), samples[:900].tolist()],
        "numpy": samples.astype(np.float64),
        "numpy batch": np.stack([samples, samples]),
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference(audio, sampling_rate=16000, padding=True, return_tensors="pt")
    found = ours(audio, sampling_rate=16000, padding=True, return_tensors="pt")
    for key in expected:
        close(found[key], expected[key])
        assert isinstance(found[key], mx.array)


def test_samples_in_the_type_that_numpy_has_not():
    samples = torch.randn(1, 4000, generator=torch.Generator().manual_seed(2)).bfloat16() / 9
    found = mlx_speech.GraniteSpeechFeatureExtractor()(samples)
    expected = transformers.GraniteSpeechFeatureExtractor()(samples)
    np.testing.assert_allclose(found.input_features, expected.input_features, atol=1e-4)
