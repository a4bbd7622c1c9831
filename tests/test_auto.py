"""The classes that find a checkpoint's own."""

from __future__ import annotations

import shutil

import mlx.core as mx
import pytest
from conftest import DATA, TINY, TINY_S2T

import mlx_speech
from mlx_speech import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    CheckpointError,
    InputError,
    UnsupportedOptionError,
)

LLAMA = DATA / "decoders" / "llama"


@pytest.mark.parametrize(
    ("auto", "folder", "name"),
    [
        (AutoConfig, TINY, "GraniteSpeechConfig"),
        (AutoConfig, LLAMA, "LlamaConfig"),
        (AutoModel, LLAMA, "LlamaModel"),
        (AutoModel, TINY_S2T, "Speech2TextModel"),
        (AutoModel, TINY, "GraniteSpeechForConditionalGeneration"),
        (AutoModelForCausalLM, LLAMA, "LlamaForCausalLM"),
        (AutoModelForCausalLM, DATA / "decoders" / "jais2", "Jais2ForCausalLM"),
        (
            AutoModelForSequenceClassification,
            DATA / "decoders" / "llama-classifier",
            "LlamaForSequenceClassification",
        ),
        (AutoModelForSpeechSeq2Seq, TINY, "GraniteSpeechForConditionalGeneration"),
        (AutoModelForMultimodalLM, TINY, "GraniteSpeechForConditionalGeneration"),
        (AutoModelForSpeechSeq2Seq, TINY_S2T, "Speech2TextForConditionalGeneration"),
        (AutoProcessor, TINY, "GraniteSpeechProcessor"),
        (AutoProcessor, TINY_S2T, "Speech2TextProcessor"),
        (AutoFeatureExtractor, TINY, "GraniteSpeechFeatureExtractor"),
        (AutoFeatureExtractor, TINY_S2T, "Speech2TextFeatureExtractor"),
        (AutoTokenizer, TINY, "Tokenizer"),
        (AutoTokenizer, TINY_S2T, "Speech2TextTokenizer"),
    ],
)
def test_class(auto, folder, name):
    found = auto.from_pretrained(pretrained_model_name_or_path=folder)
    assert type(found) is getattr(mlx_speech, name)
    again = type(found).from_pretrained(pretrained_model_name_or_path=folder)
    assert type(again) is type(found)


def test_tokenizer_without_a_model(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("a word") == AutoTokenizer.from_pretrained(TINY).encode("a word")


@pytest.mark.parametrize("folder", [TINY, TINY_S2T])
def test_what_was_saved_without_a_model(folder, tmp_path):
    """The class is that which the file names."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "processor")
    processor.feature_extractor.save_pretrained(tmp_path / "features")
    processor.tokenizer.save_pretrained(tmp_path / "tokenizer")
    for auto, name, part in (
        (AutoProcessor, "processor", processor),
        (AutoFeatureExtractor, "processor", processor.feature_extractor),
        (AutoFeatureExtractor, "features", processor.feature_extractor),
        (AutoProcessor, "tokenizer", processor.tokenizer),
    ):
        assert type(auto.from_pretrained(tmp_path / name)) is type(part)
    with pytest.raises(UnsupportedOptionError, match="has no feature extractor"):
        AutoFeatureExtractor.from_pretrained(tmp_path / "tokenizer")


def test_made_by_hand():
    config = AutoConfig.for_model("llama", vocab_size=11, hidden_size=16, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype="float16")
    assert model.config is config
    assert model.dtype == mx.float16
    with pytest.raises(InputError, match="from_config has no option novelty"):
        AutoModelForCausalLM.from_config(config, novelty=1)
    with pytest.raises(InputError, match="must be a configuration"):
        AutoModelForCausalLM.from_config("llama")
    with pytest.raises(InputError, match="AutoModel is not made, but read"):
        AutoModel()


def test_configuration_by_its_file():
    file = LLAMA / "config.json"
    assert AutoConfig.from_pretrained(file) == AutoConfig.from_pretrained(LLAMA)
    for config in (file, LLAMA, AutoConfig.from_pretrained(file, num_labels=5)):
        assert type(AutoModel.from_pretrained(LLAMA, config=config)).__name__ == "LlamaModel"


@pytest.mark.parametrize(
    ("auto", "folder", "message"),
    [
        (
            AutoModelForCausalLM,
            TINY_S2T,
            "has no class for speech_to_text; there is Speech2",
        ),
        (AutoModelForSequenceClassification, TINY, "has no class for granite_speech; there is"),
        (AutoFeatureExtractor, LLAMA, "llama: has no feature extractor"),
    ],
)
def test_what_there_is_not(auto, folder, message):
    with pytest.raises(UnsupportedOptionError, match=message):
        auto.from_pretrained(folder)


def test_unknown_family(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for auto in (AutoConfig, AutoModel):
        with pytest.raises(CheckpointError, match="None is not supported; supported are granite"):
            auto.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    for auto in (AutoConfig, AutoModel, AutoProcessor, AutoFeatureExtractor):
        with pytest.raises(CheckpointError, match="'whisper' is not supported; supported are gran"):
            auto.from_pretrained(tmp_path)
