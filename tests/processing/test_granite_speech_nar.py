"""Granite Speech NAR's processor: features of whole pairs of frames, and texts of ids."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from conftest import TINY, edit_json, find_recording
from nar_models import PROJECTOR, small

from mlx_speech import (
    AudioError,
    AutoFeatureExtractor,
    AutoProcessor,
    CheckpointError,
    GraniteSpeechNarFeatureExtractor,
    GraniteSpeechNarProcessor,
    InputError,
    UnsupportedOptionError,
    load_audio,
)
from mlx_speech.audio import SAMPLING_RATE, open_recording
from mlx_speech.processing.log_mel import GraniteSpeechFeatureExtractor
from mlx_speech.processing.request import TranscriptionRequest

SIZES = [320, 321, 479, 480, 639, 640, 641, 3199, 16000, 16159, 16160, 33333]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def processor(folder):
    return GraniteSpeechNarProcessor.from_pretrained(folder)


def noise(size: int, loud_end: bool = False) -> np.ndarray:
    """Quiet; with the last samples so loud that they would lift the floor of all."""
    samples = np.random.default_rng(size).normal(0, 1e-4, size).astype(np.float32)
    samples[: size // 2] *= 1e-5
    if loud_end:
        samples[-1:] = 1.0
    return samples


def streamed(extractor, samples, chunk_frames: int) -> list[mx.array]:
    with open_recording(samples, SAMPLING_RATE) as recording:
        return list(extractor.stream(recording, chunk_frames))


class TestFeatures:
    @pytest.mark.parametrize("size", SIZES)
    def test_whole_pairs_count_and_no_other(self, size):
        """As of Granite Speech's frames before they are put in range."""
        samples = mx.array(noise(size, loud_end=True))
        extractor = GraniteSpeechFeatureExtractor()
        frames = extractor._num_mel_frames(size)
        mel = extractor._log_mel(lambda a, b: samples[a:b], size, 0, frames)[: 2 * (size // 320)]
        expected = (mx.maximum(mel, mel.max() - 8) / 4 + 1).reshape(-1, 160)
        found = GraniteSpeechNarFeatureExtractor().log_mel(samples)
        assert found.shape == (size // 320, 160)
        assert mx.abs(found - expected).max().item() < 1e-6

    @pytest.mark.parametrize("size", [480, 16000, 16160])
    def test_the_last_frame_is_no_part_of_the_maximum(self, size):
        """That is what differs from Granite Speech's, and not by little."""
        samples = mx.array(noise(size, loud_end=True))
        found = GraniteSpeechNarFeatureExtractor().log_mel(samples)
        other = GraniteSpeechFeatureExtractor().log_mel(samples)[: len(found)]
        assert mx.abs(found - other).max().item() > 0.1

    @pytest.mark.parametrize("chunk_frames", [1, 7, 1500])
    @pytest.mark.parametrize("size", SIZES)
    def test_parts_are_the_whole(self, size, chunk_frames):
        extractor, samples = GraniteSpeechNarFeatureExtractor(), noise(size, loud_end=True)
        found = mx.concatenate(streamed(extractor, samples, chunk_frames))
        expected = extractor.log_mel(mx.array(samples))
        assert found.shape == expected.shape
        assert mx.abs(found - expected).max().item() < 1e-6

    @pytest.mark.parametrize("size", [0, 1, 256, 319])
    def test_too_short(self, size):
        with pytest.raises(AudioError, match="too short"):
            GraniteSpeechNarFeatureExtractor()(np.zeros(size, np.float32))

    def test_a_batch(self):
        inputs = GraniteSpeechNarFeatureExtractor()([noise(16000), noise(7000), noise(330)])
        assert sorted(inputs) == ["feature_lengths", "input_features"]
        assert inputs["feature_lengths"].tolist() == [50, 21, 1]
        assert inputs["input_features"].shape == (3, 50, 160)
        assert not inputs["input_features"][1, 21:].any().item()
        assert sorted(GraniteSpeechNarFeatureExtractor()(noise(16000))) == ["input_features"]

    @pytest.mark.parametrize(("frames", "tokens"), [(1, 0), (4, 0), (5, 1), (74, 14), (75, 15)])
    def test_rows_of_audio(self, frames, tokens):
        assert GraniteSpeechNarFeatureExtractor().num_audio_tokens(frames) == tokens


class TestProcessor:
    def test_what_the_model_gets(self, processor):
        inputs = processor([noise(16000), noise(7000)], sampling_rate=16000)
        assert (
            sorted(inputs)
            == ["feature_lengths", "input_features"]
            == sorted(processor.model_input_names)
        )
        alone = processor.speech_inputs(mx.array(noise(7000)))
        assert sorted(alone) == ["input_features"]
        found = inputs["input_features"][1, :21]
        assert mx.array_equal(found, alone["input_features"][0]).item()
        path = find_recording("synthetic/espeak_03.flac")
        expected = processor(load_audio(path))["input_features"]
        assert mx.array_equal(processor(path)["input_features"], expected).item()

    def test_it_decodes(self, processor):
        ids = processor.tokenizer.encode("open the gate", add_special_tokens=False)
        eos = processor.tokenizer.eos_token_id
        assert processor.batch_decode([[*ids, eos]], skip_special_tokens=True) == ["open the gate"]

    def test_it_takes_no_text(self, processor):
        with pytest.raises(InputError, match="is no option of a recording"):
            processor(noise(16000), add_special_tokens=True)
        with pytest.raises(UnsupportedOptionError, match="only MLX arrays"):
            processor(noise(16000), return_tensors="tf")

    @pytest.mark.parametrize("layout", ["second", "first", "transformers"])
    def test_it_is_found(self, tmp_path, layout):
        folder = small(tmp_path / layout, layout)
        assert type(AutoProcessor.from_pretrained(folder)) is GraniteSpeechNarProcessor
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        assert type(extractor) is GraniteSpeechNarFeatureExtractor
        assert extractor.projector_window_size == 15

    def test_saved_and_read(self, processor, tmp_path):
        processor.save_pretrained(tmp_path / "saved")
        assert type(AutoProcessor.from_pretrained(tmp_path / "saved")) is GraniteSpeechNarProcessor
        again = GraniteSpeechNarProcessor.from_pretrained(tmp_path / "saved")
        assert again.feature_extractor == processor.feature_extractor
        assert again.tokenizer.encode("a gate") == processor.tokenizer.encode("a gate")

    def test_settings_of_transformers(self, folder, tmp_path):
        """The number of filters has another name there."""
        settings = {"feature_size": 64, "frame_stacking": 2, "padding_value": 0.0}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        assert GraniteSpeechNarFeatureExtractor.from_pretrained(tmp_path).n_mels == 64
        (folder / "preprocessor_config.json").rename(tmp_path / "kept.json")
        assert GraniteSpeechNarFeatureExtractor.from_pretrained(folder).n_mels == 80
        (tmp_path / "kept.json").rename(folder / "preprocessor_config.json")

    def test_features_that_the_model_does_not_take(self, tmp_path):
        folder = small(tmp_path / "model")
        edit_json(folder / "preprocessor_config.json", n_mels=64)
        with pytest.raises(CheckpointError, match="n_mels is 64 for the processor, but 80"):
            GraniteSpeechNarProcessor.from_pretrained(folder)

    def test_windows_of_the_model(self, tmp_path):
        """Cuts are between windows of its projector."""
        projector = {**PROJECTOR, "block_size": 10, "downsample_rate": 2}
        folder = small(tmp_path / "model", projector_config=projector)
        extractor = GraniteSpeechNarProcessor.from_pretrained(folder).feature_extractor
        assert extractor.projector_window_size == 10
        assert extractor.num_audio_tokens(31) == 15


class TestRequests:
    @pytest.mark.parametrize(
        ("language", "code"), [(None, None), ("de", "de"), ("Spanish", "es"), ("FRENCH", "fr")]
    )
    def test_languages(self, processor, language, code):
        assert processor.text_language(TranscriptionRequest(language=language)) == code

    @pytest.mark.parametrize(
        "request_",
        [
            {"task": "translate", "target_language": "de"},
            {"punctuate": True},
            {"prompt": "write"},
            {"keywords": ["gate"]},
            {"language": "ja"},
            {"language": "it"},
        ],
    )
    def test_all_else_is_refused(self, processor, request_):
        request = TranscriptionRequest(**request_)
        with pytest.raises(UnsupportedOptionError, match=r"Granite Speech 4\.1 NAR"):
            processor.text_language(request)
        with pytest.raises(UnsupportedOptionError):
            processor.speech_inputs(mx.array(noise(16000)), request)


def test_tokenizer_is_read_from_the_folder(processor):
    assert len(processor.tokenizer) == len(AutoProcessor.from_pretrained(TINY).tokenizer)
