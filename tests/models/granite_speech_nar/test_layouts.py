"""The repositories that there are: the same model in each layout, and what is wrong with one."""

from __future__ import annotations

import json
import re

import mlx.core as mx
import pytest
from conftest import edit_json
from mlx.utils import tree_flatten
from nar_models import (
    CONFIG,
    ENCODER,
    LAYOUTS,
    NORMS,
    PROJECTOR,
    TEXT,
    in_layout,
    plain_norms,
    tensors,
    write_repository,
)

from mlx_speech import AutoModel, AutoModelForCTC, CheckpointError, GraniteSpeechNarForCTC
from mlx_speech.loading import load_model

X = mx.random.normal((2, 33, 160), key=mx.random.key(3))
LENGTHS = mx.array([33, 21])


@pytest.fixture
def repository(tmp_path):
    """Makes one in a layout, whose norms say nothing, as transformers' do not."""

    def make(layout: str, change=lambda weights: weights):
        config, weights = in_layout(layout, CONFIG, plain_norms(tensors()))
        return write_repository(tmp_path / layout, config, change(weights))

    return make


def outputs(model):
    out = model(X, LENGTHS)
    return out.logits, out.audio_hidden_states, out.input_ids


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_are_the_same_model(repository, layout):
    expected = GraniteSpeechNarForCTC.from_pretrained(repository("second"))
    model = load_model(repository(layout)) if layout != "second" else expected
    assert type(model) is GraniteSpeechNarForCTC
    # where transformers has no shortest sequence of slots, that of others must not count here
    model.config.min_edit_sequence_length = 8
    for found, wanted in zip(outputs(model), outputs(expected), strict=True):
        assert mx.abs(found - wanted).max().item() < 1e-5
    assert len(set(expected(X).input_ids.flatten().tolist())) > 3


def test_norms_count_where_there_are_some(tmp_path):
    whole = write_repository(tmp_path / "whole", CONFIG, tensors())
    plain = write_repository(tmp_path / "plain", CONFIG, plain_norms(tensors()))
    found = [outputs(load_model(folder))[1] for folder in (whole, plain)]
    assert mx.abs(found[0] - found[1]).max().item() > 0.01


@pytest.mark.parametrize("kind", ["layer_norms", "attn_norm", "mlp_norm", "out_norm"])
def test_norms_may_be_missing_by_kind(tmp_path, kind):
    """They then neither scale nor shift; one of them alone is missed."""
    weights = tensors()
    of_kind = [n for n in weights if re.search(NORMS, n) and f".{kind}" in n]
    plain = plain_norms(weights)
    without = {n: w for n, w in weights.items() if n not in of_kind}
    mixed = weights | {n: plain[n] for n in of_kind}
    found = load_model(write_repository(tmp_path / "without", CONFIG, without))
    expected = load_model(write_repository(tmp_path / "with", CONFIG, mixed))
    for a, b in zip(outputs(found), outputs(expected), strict=True):
        assert mx.array_equal(a, b).item()
    lost = {n: w for n, w in weights.items() if n != of_kind[0]}
    with pytest.raises(CheckpointError, match=f"1 tensors missing: {re.escape(of_kind[0])}"):
        load_model(write_repository(tmp_path / "lost", CONFIG, lost))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_tensor_counts(repository, layout):
    """None may be missing but a whole kind of norms, misshapen, or too many."""
    _, weights = in_layout(layout, CONFIG, plain_norms(tensors()))
    needed = [n for n in weights if not n.endswith("num_batches_tracked")]
    for name in needed[:: max(1, len(needed) // 9)]:
        folder = repository(f"{layout}", lambda w, n=name: {k: v for k, v in w.items() if k != n})
        with pytest.raises(CheckpointError, match="missing"):
            load_model(folder)
        folder.rename(folder.with_name(f"{layout}-{name}"))
        folder = repository(layout, lambda w, n=name: w | {n: mx.zeros((3, *w[n].shape))})
        with pytest.raises(CheckpointError, match="shape"):
            load_model(folder)
        folder.rename(folder.with_name(f"{layout}-{name}-misshapen"))
    folder = repository(layout, lambda w: w | {"encoder.extra.weight": mx.zeros(3)})
    with pytest.raises(CheckpointError, match=r"part of this model: encoder\.extra\."):
        load_model(folder)


def test_as_many_tensors_as_released(tmp_path):
    """930 of floats and 16 counters, with as many layers; of norms transformers has none."""
    config = {**CONFIG, "encoder_layer_indices": [4, 8, 12, -1]}
    config["encoder_config"] = {**ENCODER, "num_layers": 16, "self_conditioning_layer": 8}
    config["projector_config"] = {**PROJECTOR, "num_encoder_layers": 4}
    config["text_config"] = {**TEXT, "num_hidden_layers": 40}
    weights = tensors(config)
    counters = [name for name in weights if name.endswith("num_batches_tracked")]
    assert (len(weights) - len(counters), len(counters)) == (930, 16)
    load_model(write_repository(tmp_path / "deep", config, weights, shards=3))
    _, renamed = in_layout("transformers", config, weights)
    assert len(weights) - len(renamed) == 2 * (4 + 2 + 2 + 1)


def test_it_is_saved_as_ibm_has_it(repository, tmp_path):
    folder = repository("transformers")
    model = AutoModelForCTC.from_pretrained(folder)
    assert type(AutoModel.from_pretrained(folder)) is type(model)
    model.save_pretrained(tmp_path / "saved")
    stored = mx.load(str(tmp_path / "saved" / "model.safetensors"))
    expected = {name: value.shape for name, value in tensors().items()}
    assert {name: value.shape for name, value in stored.items()} == expected
    again = load_model(tmp_path / "saved")
    assert again.config.min_edit_sequence_length == model.config.min_edit_sequence_length == 1
    for (name, a), (_, b) in zip(
        tree_flatten(model.parameters()), tree_flatten(again.parameters()), strict=True
    ):
        assert mx.allclose(a, b, atol=1e-6).item(), name


def test_the_first_revision_stays_what_it_is_when_saved(repository, tmp_path):
    model = load_model(repository("first"))
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == "granite_speech_nar"
    again = load_model(tmp_path / "saved")
    assert again.config.normalizes_drafts
    assert (again.bpe_blank, again.bpe_shift) == (0, 1)
    assert mx.array_equal(again(X, LENGTHS).input_ids, model(X, LENGTHS).input_ids).item()


def test_a_head_of_its_own(repository):
    """The editor's head may be stored, also where it is tied; another one counts."""
    name, table = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    folder = repository("second", lambda w: w | {name: w[table]})
    model = load_model(folder)
    assert model.config.tie_word_embeddings
    folder.rename(folder.with_name("tied"))
    folder = repository("second", lambda w: w | {name: 2 * w[table]})
    edit_json(folder / "config.json", tie_word_embeddings=False)
    untied = load_model(folder)
    ratio = untied(X, LENGTHS).logits / model(X, LENGTHS).logits
    assert ratio[0, 0].min().item() == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_here(repository, tmp_path, bits):
    """Every part but the encoder's heads of letters, and read as it was written."""
    config = {"bits": bits, "group_size": 32}
    model = GraniteSpeechNarForCTC.from_pretrained(repository("second"), quantization_config=config)
    quantized = {name.partition(".")[0] for name, m in model.named_modules() if "scales" in m}
    assert quantized == {"encoder", "projector", "language_model"}
    model.save_pretrained(tmp_path / "quantized")
    again = load_model(tmp_path / "quantized")
    for found, expected in zip(outputs(again), outputs(model), strict=True):
        assert mx.array_equal(found, expected).item()


def test_quantized_by_mlx_audio(repository):
    """Conversions have the editor in fewer bits."""

    def quantized(weights):
        result = {}
        for name, value in weights.items():
            if name.startswith("editor.") and value.shape[1:] == (32,):
                parts = mx.quantize(value, group_size=32, bits=8)
                module = name.removesuffix(".weight")
                result |= {name: parts[0], f"{module}.scales": parts[1]}
                result[f"{module}.biases"] = parts[2]
            else:
                result[name] = value
        return result

    found = load_model(repository("mlx-audio", quantized))
    expected = load_model(repository("second"))
    drafts = [[5, 9, 12], [7]]
    audio = [mx.random.normal((4, 32), key=mx.random.key(k)) for k in range(2)]
    pairs = zip(found.edit(audio, drafts), expected.edit(audio, drafts), strict=True)
    for a, b in pairs:
        assert 0 < mx.abs(a - b).max().item() < 0.2
