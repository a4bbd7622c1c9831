"""What we write, transformers reads: with no tensor missing or left over, and equal logits."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import PreTrainedModel

import mlx_speech
from convert import convert

from .random_models import (
    SPEECH_CASES,
    assert_close,
    features,
    randomize,
    save_decoder,
    save_speech,
    speech_ids,
    tensor,
    text_ids,
)

SPEECH2TEXT = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "conv_channels": 12,
    "input_feat_per_channel": 8,
    "conv_kernel_sizes": (5, 3),
    "pad_token_id": 1,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
}
DECODERS = [
    name
    for family in ("Granite", "Llama", "Jais2")
    for name in (f"{family}ForCausalLM", f"{family}Model")
]


def saved(name: str, folder, **options) -> PreTrainedModel:
    """A random model of transformers, written to a folder."""
    if name in SPEECH_CASES:
        return save_speech(SPEECH_CASES[name], folder)
    model_class = getattr(transformers, name)
    if name.startswith("Speech2Text"):
        model = model_class(transformers.Speech2TextConfig(**SPEECH2TEXT | options)).eval()
        randomize(model, 5)
        model.save_pretrained(folder)
        return model
    return save_decoder(folder, 3, model_class, **options)


def ours(reference: PreTrainedModel, folder, **options):
    return getattr(mlx_speech, type(reference).__name__).from_pretrained(folder, **options)


def theirs(reference: PreTrainedModel, folder) -> PreTrainedModel:
    """Read by transformers, whole."""
    model, info = type(reference).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@torch.no_grad()
def assert_same(model, reference: PreTrainedModel, tolerance: float = 2e-5) -> None:
    """In what they compute of random inputs; `model` is ours or theirs."""
    name = type(reference).__name__
    if name.startswith("GraniteSpeech"):
        width = reference.config.encoder_config.input_dim
        size, rate = reference.config.window_size, reference.config.downsample_rate
        tokens = -(-31 // size) * (size // rate)
        inputs = {"input_ids": speech_ids(1, tokens), "input_features": features(1, 31, width)}
    elif name.startswith("Speech2Text"):
        inputs = {"input_features": features(1, 23, 8), "decoder_input_ids": text_ids(1, 4, 1, 50)}
    else:
        inputs = {"input_ids": text_ids(1, 7)}
    result = "last_hidden_state" if name.endswith("Model") else "logits"
    expected = reference(**{key: tensor(value) for key, value in inputs.items()})[result]
    if isinstance(model, PreTrainedModel):
        found = model(**{key: tensor(value) for key, value in inputs.items()})[result]
        found = mx.array(found.numpy())
    else:
        found = getattr(model(**{key: mx.array(v) for key, v in inputs.items()}), result)
    assert_close(found, expected, tolerance)


CASES = [
    *((name, {}) for name in SPEECH_CASES),
    *((name, {"tie_word_embeddings": tied}) for name in DECODERS for tied in (True, False)),
    ("LlamaForSequenceClassification", {"num_labels": 3}),
    *(
        (name, {"tie_word_embeddings": tied})
        for name in ("Speech2TextForConditionalGeneration", "Speech2TextModel")
        for tied in (True, False)
    ),
]


@pytest.mark.parametrize("max_shard_size", ["50GB", "20KB"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_round_trip(name, options, max_shard_size, tmp_path):
    """transformers -> ours -> transformers -> ours."""
    reference = saved(name, tmp_path / "first", **options)
    model = ours(reference, tmp_path / "first")
    model.save_pretrained(tmp_path / "second", max_shard_size=max_shard_size)
    files = sorted(path.name for path in (tmp_path / "second").glob("model*.safetensors"))
    assert (files == ["model.safetensors"]) == (max_shard_size == "50GB")
    again = theirs(reference, tmp_path / "second")
    assert_same(again, reference)
    assert_same(ours(reference, tmp_path / "second"), reference)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_new_model(name, options, tmp_path):
    """Ours, made from a configuration alone."""
    reference = saved(name, tmp_path / "first", **options)
    kind = getattr(mlx_speech, type(reference).__name__)
    config = kind.config_class.from_pretrained(tmp_path / "first")
    mx.random.seed(3)
    model = kind(config).eval()
    model.save_pretrained(tmp_path / "second")
    again = theirs(reference, tmp_path / "second")
    assert_same(model, again)
    assert_same(ours(reference, tmp_path / "second"), again)


def test_an_adapted_model_that_transformers_saved(tiny_folder, tmp_path):
    """It writes the adapter twice, and the layers under it by peft's names; its own reading of
    that has new weights in those layers."""
    kind = transformers.GraniteSpeechForConditionalGeneration
    kind.from_pretrained(tiny_folder).save_pretrained(str(tmp_path))
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert any(".base_layer." in key for key in file.keys())  # noqa: SIM118
    read = mlx_speech.GraniteSpeechForConditionalGeneration.from_pretrained
    ids = mx.array([[7, 8, 9]])
    found, expected = (read(f)(ids, adapter=True).logits for f in (tmp_path, tiny_folder))
    assert mx.array_equal(found, expected).item()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_conversion(name, options, tmp_path):
    reference = saved(name, tmp_path / "first", **options)
    convert(tmp_path / "first", tmp_path / "second")
    assert_same(theirs(reference, tmp_path / "second"), reference)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_as_transformers_writes_it(name, options, tmp_path):
    """The same tensors in the same shapes, and the same files."""
    reference = saved(name, tmp_path / "first", **options)
    ours(reference, tmp_path / "first").save_pretrained(tmp_path / "second")

    def tensors(folder) -> dict[str, list[int]]:
        with safe_open(tmp_path / folder / "model.safetensors", "np") as file:
            assert file.metadata()["format"] == "pt"
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118

    assert tensors("second") == tensors("first")
    names = {path.name for path in (tmp_path / "second").iterdir()}
    assert names - {"model.safetensors.index.json"} == {
        p.name for p in (tmp_path / "first").iterdir()
    } - {"README.md"}
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["architectures"] == [type(reference).__name__]
    assert config["dtype"] == "float32"


@pytest.mark.parametrize(("name", "options"), CASES)
def test_initialization(name, options, tmp_path):
    """A new model has the deviations and the constants of theirs."""
    options = options | ({} if name in SPEECH_CASES else {"pad_token_id": 1})
    reference = saved(name, tmp_path, **options)
    torch.manual_seed(1)
    mx.random.seed(1)
    kind = getattr(mlx_speech, type(reference).__name__)
    type(reference)(reference.config).save_pretrained(tmp_path / "theirs")
    kind(kind.config_class.from_pretrained(tmp_path)).save_pretrained(tmp_path / "ours")
    stored = (tmp_path / folder / "model.safetensors" for folder in ("theirs", "ours"))
    expected_tensors, found = (mx.load(str(file)) for file in stored)
    assert found.keys() == expected_tensors.keys()
    for key, expected in expected_tensors.items():
        if mx.std(expected).item() == 0 or "running_var" in key:
            assert mx.allclose(found[key], expected, atol=2e-5).item(), key
        elif expected.size > 100:
            assert abs(mx.std(found[key]) / mx.std(expected) - 1).item() < 0.25, key
        if "embed_tokens" in key:
            rows = expected.any(axis=1)
            assert mx.array_equal(found[key].any(axis=1), rows).item()
            assert not rows.all().item()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.* new, and random:UserWarning")
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("LlamaForCausalLM", "LlamaForSequenceClassification"),
        ("LlamaForSequenceClassification", "LlamaForCausalLM"),
        ("LlamaForCausalLM", "LlamaModel"),
        ("LlamaModel", "LlamaForCausalLM"),
        ("Jais2Model", "Jais2ForCausalLM"),
        ("GraniteForCausalLM", "GraniteModel"),
        ("Speech2TextForConditionalGeneration", "Speech2TextModel"),
        ("Speech2TextModel", "Speech2TextForConditionalGeneration"),
    ],
)
def test_another_head(source, target, tmp_path):
    """Of what is not new in it, every tensor is that of theirs."""
    saved(source, tmp_path / "a")
    kind = getattr(transformers, target)
    reference, info = kind.from_pretrained(tmp_path / "a", output_loading_info=True)
    new = info["missing_keys"]
    assert len(new) == ("Model" not in target and "Speech2" not in target)
    reference.save_pretrained(tmp_path / "b")
    getattr(mlx_speech, target).from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c")
    found, expected = (mx.load(str(tmp_path / f / "model.safetensors")) for f in ("c", "b"))
    assert found.keys() == expected.keys()
    for name in found.keys() - new:
        assert mx.array_equal(found[name], expected[name]).item()
    for name in new:
        assert found[name].shape == expected[name].shape


@torch.no_grad()
def test_resized(tmp_path):
    """And in half precision, which both read as float32 for the comparison."""
    reference = saved("LlamaForCausalLM", tmp_path / "a")
    model = ours(reference, tmp_path / "a")
    model.resize_token_embeddings(70, pad_to_multiple_of=32)
    model.to("float16").save_pretrained(tmp_path / "b")
    again = theirs(reference, tmp_path / "b")
    assert again.dtype == torch.float16
    assert again.config.vocab_size == 96
    assert_same(ours(reference, tmp_path / "b"), again.float())
