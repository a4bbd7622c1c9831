"""The classes that find a checkpoint's own."""

from __future__ import annotations

import shutil

import pytest
from conftest import DATA, TINY, TINY_S2T

import mlx_speech
from mlx_speech import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    CheckpointError,
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
    assert type(auto.from_pretrained(folder)) is getattr(mlx_speech, name)


def test_tokenizer_without_a_model(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("a word") == AutoTokenizer.from_pretrained(TINY).encode("a word")


def test_made_by_hand():
    config = AutoConfig.for_model("llama", vocab_size=11, hidden_size=16, num_attention_heads=2)
    assert AutoModelForCausalLM.from_config(config).config is config


@pytest.mark.parametrize(
    ("auto", "folder", "message"),
    [
        (
            AutoModelForCausalLM,
            TINY_S2T,
            "has no class for speech_to_text; there is Speech2",
        ),
        (AutoModelForSequenceClassification, TINY, "has no class for granite_speech; there is"),
        (AutoFeatureExtractor, LLAMA, "a llama model takes no audio"),
    ],
)
def test_what_there_is_not(auto, folder, message):
    with pytest.raises(UnsupportedOptionError, match=message):
        auto.from_pretrained(folder)


def test_unknown_family(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    for auto in (AutoConfig, AutoModel, AutoProcessor, AutoFeatureExtractor):
        with pytest.raises(CheckpointError, match="'whisper' is not supported; supported are gran"):
            auto.from_pretrained(tmp_path)
