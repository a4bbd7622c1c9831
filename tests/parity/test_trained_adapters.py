"""Adapters of low-rank terms and whole modules: what we write is read by peft over transformers'
model, and what peft writes by us. Logits within 1e-4, and the same ids."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from adapters import adapter, train
from peft import LoraConfig, PeftModel, get_peft_model
from peft.functional import set_adapter
from transformers import GraniteSpeechForConditionalGeneration, GraniteSpeechPlusConfig
from transformers import GraniteSpeechPlusForConditionalGeneration as PlusModel

from mlx_speech.loading import load_model
from mlx_speech.training.adapter_folder import write_adapter

from .random_models import (
    SPEECH_CASES,
    assert_logits_match,
    features,
    save_speech,
    speech_ids,
    tensor,
    text_ids,
)

LAYERS = "language_model.model.layers"
QUERY, VALUE = f"{LAYERS}.{{}}.self_attn.q_proj", f"{LAYERS}.{{}}.self_attn.v_proj"
ALL = [name.format(i) for name in (QUERY, VALUE) for i in (0, 1)]
#: by name: the layers with low-rank terms, and the modules that are whole
KINDS = {
    "low-rank": (ALL, []),
    "projector": ([], ["projector"]),
    "heads": ([QUERY.format(1), f"{LAYERS}.0.mlp.down_proj"], ["encoder.out", "projector"]),
    "last-layer": (ALL[::2], ["projector", f"{LAYERS}.1"]),
    "encoder-layer": ([], ["encoder.layers.1"]),
}  # fmt: skip
#: likewise what peft is told
PEFT_KINDS = {
    "ends-of-names": {"target_modules": ["q_proj"], "modules_to_save": ["projector", "er.out"]},
    # of the decoder and of the encoder, and of whatever ends so
    "the-same-end": {"target_modules": ["k_proj"], "modules_to_save": ["layers.1", "query"]},
    "nothing-else": {"target_modules": "dummy-target-modules", "modules_to_save": ["projector"]},
    "rank-stabilised": {
        "target_modules": r".*language_model.*proj",
        "modules_to_save": ["language_model.layers.0"],
        "use_rslora": True,
    },
}  # fmt: skip


def reference(folder):
    kind = GraniteSpeechForConditionalGeneration
    config = kind.config_class.from_pretrained(folder)
    if config.model_type == GraniteSpeechPlusConfig.model_type:
        kind = PlusModel
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def compare(ours, theirs, width: int, audio_tokens: int, seed: int = 0) -> None:
    """Logits with audio, and ids that are generated from them."""
    x, ids = features(1, 21, width, seed), speech_ids(1, audio_tokens)
    expected = theirs(input_ids=tensor(ids), input_features=tensor(x)).logits
    assert_logits_match(ours(mx.array(ids), input_features=mx.array(x)).logits, expected)
    options = {"max_new_tokens": 8, "do_sample": False}
    inputs = {"input_features": tensor(x), "attention_mask": torch.ones_like(tensor(ids))}
    expected = theirs.generate(input_ids=tensor(ids), **inputs, **options)
    found = ours.generate(mx.array(ids), input_features=mx.array(x), **options)
    assert found.tolist() == expected.tolist()


def size(model) -> tuple[int, int]:
    """Of the features, and of the projected ones of 21 frames."""
    windows = -(-21 // model.config.window_size)
    tokens = windows * model.config.window_size // model.config.downsample_rate
    return model.config.encoder_config.input_dim, tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["three-layers-untied", "plus-input-and-middle"])
def test_ours_over_transformers_model(case, kind, tmp_path):
    """By peft, and by the model's own `load_adapter`."""
    save_speech(SPEECH_CASES[case], tmp_path / "base")
    model, (lora, saved) = load_model(tmp_path / "base", dtype=mx.float32), KINDS[kind]
    train(model, saved, step=0.05)
    adapter(tmp_path / "adapter", model, lora, saved)
    ours = load_model(tmp_path / "base", dtype=mx.float32, adapter=tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(reference(tmp_path / "base"), tmp_path / "adapter").eval()
    compare(ours, theirs, *size(ours))
    theirs = reference(tmp_path / "base")
    theirs.load_adapter(str(tmp_path / "adapter"))
    theirs.set_adapter("default")
    compare(ours, theirs, *size(ours))


@pytest.mark.parametrize("kind", PEFT_KINDS)
def test_pefts_over_our_model(kind, tmp_path):
    """On, and off as the base is."""
    save_speech(SPEECH_CASES["three-layers-untied"], tmp_path / "base")
    config = LoraConfig(r=4, lora_alpha=6, **PEFT_KINDS[kind])
    theirs = get_peft_model(reference(tmp_path / "base"), config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(tmp_path / "base", dtype=mx.float32, adapter=tmp_path / "adapter")
    compare(ours, theirs.eval(), *size(ours))
    ids = text_ids(2, 9)
    with theirs.disable_adapter():
        assert_logits_match(ours(mx.array(ids)).logits, theirs(input_ids=tensor(ids)).logits)
    assert_logits_match(
        ours(mx.array(ids), adapter=True).logits, theirs(input_ids=tensor(ids)).logits
    )


def over_its_own(folder, path):
    """As the README says it: both adapters are active. peft's own `set_adapter` knows that only one
    has whole modules."""
    theirs = reference(folder)
    with pytest.warns(UserWarning, match="multiple adapters in the model"):
        theirs.load_adapter(str(path), adapter_name="tuned")
    set_adapter(theirs, ["default", "tuned"])
    return theirs


def over_the_merged(folder, path):
    """The model's own adapter becomes part of its weights first."""
    own = PeftModel.from_pretrained(without_adapter(folder), folder)
    return PeftModel.from_pretrained(own.merge_and_unload().eval(), path).eval()


def without_adapter(folder):
    """transformers' model of a folder, but for its adapter."""
    own = folder / "adapter_config.json"
    hidden = own.rename(folder / "hidden")
    try:
        return reference(folder)
    finally:
        hidden.rename(own)


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("low-rank", over_its_own),
        ("heads", over_its_own),
        ("low-rank", over_the_merged),
        ("heads", over_the_merged),
        ("last-layer", over_the_merged),
    ],
)
def test_over_the_models_own_adapter(kind, way, tmp_path):
    case, (lora, saved) = SPEECH_CASES["two-layers-untied-lora"], KINDS[kind]
    save_speech(case, tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=mx.float32)
    train(model, saved, step=0.05)
    adapter(tmp_path / "adapter", model, lora, saved)
    ours = load_model(tmp_path / "base", dtype=mx.float32, adapter=tmp_path / "adapter")
    compare(ours, way(tmp_path / "base", tmp_path / "adapter"), *size(ours))


def test_over_the_bundled_checkpoint(tiny_folder, tmp_path):
    """Whose own adapter is on as well."""
    model = load_model(tiny_folder, dtype=mx.float32)
    layers = [name.format(i) for name in (QUERY, VALUE) for i in range(4)]
    train(model, ["projector"], step=0.01)
    adapter(tmp_path, model, layers, ["projector"], rank=8, scale=0.3)
    ours = load_model(tiny_folder, dtype=mx.float32, adapter=tmp_path)
    theirs = over_its_own(tiny_folder, tmp_path)
    x, ids = features(1, 31, 160), np.array([[7, 8, 9, *([4] * 9), 11, 12]])
    with torch.no_grad():
        expected = theirs(input_ids=tensor(ids), input_features=tensor(x)).logits
    found = np.array(ours(mx.array(ids), input_features=mx.array(x)).logits)
    assert np.abs(found - expected.numpy()).max() < 1e-4 * expected.abs().max()
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = theirs.generate(input_ids=tensor(ids), input_features=tensor(x), **options)
    found = ours.generate(mx.array(ids), input_features=mx.array(x), **options)
    assert found.tolist() == expected.tolist()


def test_of_a_model_that_mlx_lm_made_ready_for_training(tmp_path):
    from mlx_lm.tuner.utils import linear_to_lora_layers

    save_speech(SPEECH_CASES["three-layers-untied"], tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=mx.float32)
    config = {"rank": 4, "scale": 1.5, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    linear_to_lora_layers(model.language_model.model, 1, config)
    layer = dict(model.named_modules())[QUERY.format(1)]
    layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(3))
    lora = {QUERY.format(1): (layer.lora_a, layer.lora_b)}
    about = {"rank": 4, "scale": 1.5, "dropout": 0.0, "saved": [], "base_model": "owner/base"}
    write_adapter(tmp_path / "adapter", model, lora=lora, **about)
    theirs = PeftModel.from_pretrained(reference(tmp_path / "base"), tmp_path / "adapter").eval()
    compare(model, theirs, *size(model))
    ours = load_model(tmp_path / "base", dtype=mx.float32, adapter=tmp_path / "adapter")
    compare(ours, theirs, *size(ours))


def test_what_is_saved_stacked_is_one_to_peft(tmp_path):
    save_speech(SPEECH_CASES["two-layers-untied-lora"], tmp_path / "base")
    model, (lora, saved) = load_model(tmp_path / "base", dtype=mx.float32), KINDS["last-layer"]
    train(model, saved, step=0.05)
    adapter(tmp_path / "adapter", model, lora, saved)
    ours = load_model(tmp_path / "base", dtype=mx.float32, adapter=tmp_path / "adapter")
    ours.save_pretrained(tmp_path / "both")
    theirs = reference(tmp_path / "both")
    compare(ours, theirs, *size(ours))
