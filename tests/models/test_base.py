"""Room for added tokens in a model."""

from __future__ import annotations

import copy
import shutil

import mlx.core as mx
import mlx.nn as nn
import pytest
import small_tokenizers as small
from conftest import DECODERS, edit_json

from mlx_speech import (
    GraniteConfig,
    GraniteForCausalLM,
    GraniteSpeech5Encoder,
    GraniteSpeech5EncoderConfig,
    InputError,
    Jais2Config,
    Jais2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    LlamaTokenizer,
    Speech2TextConfig,
    Speech2TextModel,
    UnsupportedOptionError,
)
from mlx_speech.layers.activations import ACTIVATIONS
from mlx_speech.loading import load_model

IDS = mx.array([[1, 7, 30, 2]])
SIZES = {"hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 2}


def granite(vocab_size: int = 40, **options) -> GraniteForCausalLM:
    mx.random.seed(1)
    return GraniteForCausalLM(
        GraniteConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            **options,
        )
    )


@pytest.mark.parametrize("config", [None, "granite", {}, LlamaConfig()])
def test_no_configuration(config):
    found = type(config).__name__
    rule = f"a GraniteForCausalLM is made from a GraniteConfig, not from a {found}; .*from_pretr"
    with pytest.raises(InputError, match=rule):
        GraniteForCausalLM(config)


def test_a_head_that_is_said_to_be_tied_but_differs(tmp_path):
    folder = shutil.copytree(DECODERS / "llama", tmp_path / "model")
    expected = load_model(folder)(IDS).logits
    edit_json(folder / "config.json", tie_word_embeddings=True)
    rule = r"lm_head\.weight and model\.embed_tokens\.weight differ; both are used"
    with pytest.warns(UserWarning, match=rule):
        model = load_model(folder)
    assert mx.array_equal(model(IDS).logits, expected)
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("tied", [True, False])
class TestResizing:
    def test_to_a_multiple(self, tied):
        model = granite(tie_word_embeddings=tied)
        assert model.resize_token_embeddings() is model.get_input_embeddings()
        assert model.config.vocab_size == 40
        assert model.resize_token_embeddings(41, pad_to_multiple_of=64).weight.shape == (64, 32)
        assert model.resize_token_embeddings(pad_to_multiple_of=50).weight.shape == (100, 32)
        assert model(IDS).logits.shape == (1, 4, 100)
        with pytest.raises(InputError, match="pad_to_multiple_of is 0"):
            model.resize_token_embeddings(41, 0)

    def test_old_tokens_are_kept(self, tied):
        model = granite(tie_word_embeddings=tied)
        before = model(IDS).logits
        assert model.resize_token_embeddings(43) is model.model.embed_tokens
        after = model(IDS).logits
        assert after.shape == (1, 4, 43)
        assert mx.allclose(after[..., :40], before, atol=1e-6).item()
        # the mean of rows gives the mean of logits
        mean = before.mean(axis=-1, keepdims=True)
        assert mx.allclose(after[..., 40:], mean, atol=1e-6).item()
        assert model.config.vocab_size == 43
        assert model.config.pad_token_id is None

    def test_new_rows_are_drawn(self, tied):
        model = granite(tie_word_embeddings=tied, initializer_range=0.5)
        mean = model.model.embed_tokens.weight.mean(axis=0)
        rows = model.resize_token_embeddings(240, mean_resizing=False).weight[40:]
        assert abs(mx.std(rows).item() - 0.5) < 0.02
        assert mx.abs(rows - mean).max().item() > 1

    def test_padding_is_zero(self, tied):
        model = granite(tie_word_embeddings=tied)
        head = model.model.embed_tokens if tied else model.lm_head
        model.resize_token_embeddings(42, padding_idx=41)
        rows = model.model.embed_tokens.weight
        assert rows.any(axis=1).tolist() == [True] * 41 + [False]
        assert model.config.pad_token_id == 41
        assert head.weight[41].any().item() == (not tied)
        model.resize_token_embeddings(42, padding_idx=0)
        assert not rows[41].any().item()

    def test_fewer(self, tied):
        model = granite(tie_word_embeddings=tied)
        before = model(IDS).logits
        model.resize_token_embeddings(31)
        assert mx.allclose(model(IDS).logits, before[..., :31], atol=1e-6).item()

    def test_half_precision_stays(self, tied):
        model = granite(tie_word_embeddings=tied)
        model.set_dtype(mx.bfloat16)
        assert model.resize_token_embeddings(50).weight.dtype == mx.bfloat16
        assert model(IDS).logits.dtype == mx.bfloat16

    def test_a_quantized_model(self, tied):
        model = granite(tie_word_embeddings=tied)
        nn.quantize(model, group_size=32)
        with pytest.raises(UnsupportedOptionError, match="before the model is quantized"):
            model.resize_token_embeddings(50)
        assert model.config.vocab_size == 40

    def test_impossible_sizes(self, tied):
        model = granite(tie_word_embeddings=tied)
        for size in (0, -1):
            with pytest.raises(InputError, match=f"embeddings of {size} tokens"):
                model.resize_token_embeddings(size)
        for token in (41, -1):
            with pytest.raises(InputError, match=f"padding_idx {token} is not one of 41 tokens"):
                model.resize_token_embeddings(41, padding_idx=token)


def test_a_quantized_head_alone():
    model = granite()
    nn.quantize(model, group_size=32, class_predicate=lambda name, _: name == "lm_head")
    with pytest.raises(UnsupportedOptionError, match="QuantizedLinear"):
        model.resize_token_embeddings(50)
    assert model.model.embed_tokens.weight.shape == (40, 32)


def test_notes_of_llama_2(tmp_path):
    """A padding token, its row, and what it changes for the others: nothing."""
    tokenizer = LlamaTokenizer.from_pretrained(small.llama(tmp_path))
    model = granite(len(tokenizer))
    inputs = tokenizer("the lazy dog")
    expected = model(**inputs).logits[0, -1]
    assert tokenizer.add_special_tokens({"pad_token": "<pad>"}) == 1
    model.resize_token_embeddings(len(tokenizer), padding_idx=tokenizer.pad_token_id)
    assert not model.model.embed_tokens(mx.array([tokenizer.pad_token_id])).any().item()
    batch = tokenizer(["the lazy dog", "what is the weather going to be"])
    logits = model(**batch).logits[0, -1]
    assert mx.allclose(logits[:-1], expected, atol=1e-4).item()


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification, Jais2ForCausalLM])
def test_other_models(kind):
    config = kind.config_class(vocab_size=40, num_hidden_layers=1, pad_token_id=None, **SIZES)
    model = kind(config)
    with pytest.raises(InputError):
        model.resize_token_embeddings(0)
    rows = model.resize_token_embeddings(41, padding_idx=40).weight
    assert rows.shape == (41, 32)
    assert not rows[40].any().item()
    assert (config.vocab_size, config.pad_token_id) == (41, 40)
    mx.eval(model(mx.array([[40, 1, 40]])))


def test_a_speech_model(tiny_copy):
    from mlx_speech import load

    model, _ = load(tiny_copy)
    size = model.config.text_config.vocab_size
    model.resize_token_embeddings(size + 1, padding_idx=size)
    assert model.config.text_config.vocab_size == size + 1
    assert model.language_model(IDS).logits.shape == (1, 4, size + 1)


class TestEmbeddings:
    """By the names that transformers has for them."""

    def test_of_each_kind(self):
        tied, untied = granite(tie_word_embeddings=True), granite()
        for model in (tied, untied):
            assert model.get_input_embeddings() is model.model.embed_tokens
            assert model.model.get_input_embeddings() is model.model.embed_tokens
            assert model.model.get_output_embeddings() is None
        assert tied.get_output_embeddings() is tied.model.embed_tokens
        assert untied.get_output_embeddings() is untied.lm_head

    def test_of_speech_models(self, tiny, tiny_s2t):
        speech = tiny[0]
        assert speech.get_input_embeddings() is speech.language_model.model.embed_tokens
        assert speech.get_output_embeddings() is speech.get_input_embeddings()
        body = tiny_s2t[0].model
        assert tiny_s2t[0].get_input_embeddings() is body.decoder.embed_tokens
        assert body.get_input_embeddings() is body.decoder.embed_tokens

    def test_others_instead(self):
        for model in (granite(), granite().model):
            table = nn.Embedding(40, 32)
            model.set_input_embeddings(table)
            assert model.get_input_embeddings() is table
        other = granite()
        other.set_input_embeddings(model.get_input_embeddings())
        assert mx.allclose(other.model.embed_tokens(IDS), table(IDS)).item()


def test_number_of_parameters():
    model, layer = granite(tie_word_embeddings=True), 4 * 32 * 32 + 3 * 32 * 32 + 2 * 32
    assert model.num_parameters() == 40 * 32 + layer + 32
    model.freeze()
    assert model.num_parameters(only_trainable=True) == 0


def test_what_it_is():
    model = granite()
    assert (model.can_generate(), model.model.can_generate()) == (True, False)
    assert model.name_or_path == ""
    assert model.model.padding_idx is None
    labels = LlamaConfig(num_labels=3, num_hidden_layers=1, vocab_size=9, pad_token_id=4, **SIZES)
    classifier = LlamaForSequenceClassification(labels)
    assert (classifier.num_labels, classifier.model.padding_idx) == (3, 4)


@pytest.mark.parametrize("config", [None, "llama", {}, Jais2Config(num_hidden_layers=1, **SIZES)])
def test_made_from_what_is_no_configuration(config):
    name = type(config).__name__
    for kind in (LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification):
        with pytest.raises(
            InputError, match=f"{kind.__name__} is made from a LlamaConfig, not from a {name}"
        ):
            kind(config)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_a_copy(name):
    mx.random.seed(4)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "conv_channels": 8}
    model = Speech2TextModel(Speech2TextConfig(activation_function=name, vocab_size=20, **sizes))
    model.eval()
    inputs = {"input_features": mx.random.normal((1, 9, 80)), "decoder_input_ids": IDS % 20}
    expected = model(**inputs).last_hidden_state
    assert mx.array_equal(copy.deepcopy(model)(**inputs).last_hidden_state, expected)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_mel_bins": 4, "vocab_size": 9}
    encoder = GraniteSpeech5Encoder(GraniteSpeech5EncoderConfig(hidden_act=name, **sizes)).eval()
    expected = encoder(mx.ones((1, 9, 16))).last_hidden_state
    assert mx.array_equal(copy.deepcopy(encoder)(mx.ones((1, 9, 16))).last_hidden_state, expected)
