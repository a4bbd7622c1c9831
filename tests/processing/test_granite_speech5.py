"""TurboCTC's features beside golden ones, whole and in parts; its tokenizer and processor."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import turboctc
from conftest import DATA

from mlx_speech import (
    AudioError,
    AutoFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    GraniteSpeech5FeatureExtractor,
    GraniteSpeech5Processor,
    InputError,
    ParakeetTokenizer,
    UnsupportedOptionError,
)
from mlx_speech.audio import open_recording
from mlx_speech.processing.request import TranscriptionRequest

GOLDEN = dict(np.load(DATA / "reference" / "turboctc.npz"))
SAMPLES = [int(name.split()[1]) for name in GOLDEN if name.startswith("features")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return turboctc.write(tmp_path_factory.mktemp("turboctc"))


class TestFeatures:
    @pytest.mark.parametrize("samples", SAMPLES)
    def test_golden(self, samples):
        found = GraniteSpeech5FeatureExtractor()(turboctc.waveform(samples))
        expected = GOLDEN[f"features {samples}"]
        assert found.input_features.shape == (1, *expected.shape)
        assert np.abs(np.array(found.input_features[0]) - expected).max() < 1e-4

    @pytest.mark.parametrize("width", [3, 7])
    @pytest.mark.parametrize("samples", [640, 9599, 9600, 9601, 30000])
    def test_parts_of_a_recording_are_those_of_all(self, samples, width):
        """The floor too, which the loudest part sets, and differences across the cuts."""
        extractor = GraniteSpeech5FeatureExtractor(delta_win_length=width)
        wave = turboctc.waveform(samples) * np.linspace(1e-4, 1, samples, dtype=np.float32) ** 3
        whole = extractor.log_mel(mx.array(wave))
        with open_recording(wave, sampling_rate=16000) as recording:
            for frames in (1, 7, 1500):
                parts = list(extractor.stream(recording, frames))
                assert {len(part) for part in parts[:-1]} <= {frames}
                assert mx.abs(mx.concatenate(parts) - whole).max().item() < 1e-5

    def test_each_of_a_batch_is_what_it_is_alone(self):
        extractor, waves = GraniteSpeech5FeatureExtractor(), [turboctc.waveform(n) for n in SAMPLES]
        together = extractor(waves)
        for row, wave in enumerate(waves):
            alone = extractor(wave).input_features[0]
            assert mx.array_equal(together.input_features[row, : len(alone)], alone)
            assert not together.input_features[row, len(alone) :].any()
            assert together.attention_mask[row].sum().item() == len(alone)
        assert "attention_mask" not in extractor(waves, return_attention_mask=False)

    def test_too_short(self):
        with pytest.raises(AudioError, match="256 samples is too short"):
            GraniteSpeech5FeatureExtractor()(np.zeros(256, np.float32))

    @pytest.mark.parametrize("options", [{"delta_win_length": 4}, {"win_length": 600}])
    def test_settings_that_make_no_sense(self, options):
        with pytest.raises(InputError, match=next(iter(options))):
            GraniteSpeech5FeatureExtractor(**options)

    def test_settings_of_an_older_class_are_left_alone(self, folder):
        """preprocessor_config.json lies there too, and says something else."""
        for kind in (GraniteSpeech5FeatureExtractor, AutoFeatureExtractor):
            extractor = kind.from_pretrained(folder)
            assert (extractor.hop_length, extractor.num_mel_bins) == (160, 80)
            assert extractor.to_dict() == turboctc.FEATURES


@pytest.fixture(params=turboctc.TOKENIZERS)
def tokenizer(request, tmp_path):
    turboctc.write_tokenizer(tmp_path, request.param)
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(found, ParakeetTokenizer)
    return found


class TestTokenizer:
    TEXT = "the light in the kitchen"

    def test_runs_are_one_and_blanks_nothing(self, tokenizer):
        ids = tokenizer.encode(self.TEXT)
        frames = [0, *(label for i in ids for label in (i, i, 0))]
        assert tokenizer.decode(frames) == tokenizer.decode(ids) == self.TEXT
        assert tokenizer.batch_decode([frames, [0, 0], ids]) == [self.TEXT, "", self.TEXT]
        assert tokenizer.decode(mx.array(frames)) == self.TEXT
        assert tokenizer.decode([]) == ""

    def test_real_doubles(self, tokenizer):
        """Two of the same with a blank between are two; collapsed once more they would be one."""
        (label,) = tokenizer.encode("l")[-1:]
        one = tokenizer.decode([label])
        assert tokenizer.decode([label, 0, label]).strip() == 2 * one.strip()
        assert tokenizer.decode([label, label]) == one
        assert tokenizer.decode([label, label], group_tokens=False).strip() == 2 * one.strip()

    def test_saved_and_read_again(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path / "saved")
        again = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert type(again) is ParakeetTokenizer
        assert again.pad_token_id == 0
        assert again.get_vocab() == tokenizer.get_vocab()


class TestProcessor:
    def test_inputs_and_labels(self, folder):
        processor = AutoProcessor.from_pretrained(folder)
        assert type(processor) is GraniteSpeech5Processor
        waves, texts = [turboctc.waveform(n) for n in (9000, 4000)], ["the light", "noon"]
        inputs = processor(waves, text=texts, sampling_rate=16000)
        assert set(inputs) == set(processor.model_input_names)
        assert [processor.decode(row) for row in inputs.labels] == texts
        assert processor.tokenizer.padding_side == "right"
        assert set(processor(waves)) == {"input_features", "attention_mask"}
        with pytest.raises(InputError, match="no text is given"):
            processor(waves, split_special_tokens=True)

    @pytest.mark.parametrize(
        "asked",
        [
            {"task": "translate", "target_language": "de"},
            {"punctuate": True},
            {"keywords": ["Noor"]},
            {"prompt": "what is said?"},
            {"language": "French"},
        ],
        ids=lambda asked: next(iter(asked)),
    )
    def test_nothing_can_be_asked_for(self, folder, asked):
        processor = GraniteSpeech5Processor.from_pretrained(folder)
        with pytest.raises(UnsupportedOptionError, match=r"Granite Speech 5\.0 TurboCTC"):
            processor.text_language(TranscriptionRequest(**asked))

    def test_english_is_what_it_writes(self, folder):
        processor = GraniteSpeech5Processor.from_pretrained(folder)
        assert processor.text_language(TranscriptionRequest(language="English")) == "en"
        assert processor.text_language(TranscriptionRequest()) is None
