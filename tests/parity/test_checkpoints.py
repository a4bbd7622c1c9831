"""One model in the forms in which checkpoints come, float32, logits within 1e-4."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GraniteSpeechForConditionalGeneration

from mlx_speech.loading import load_model

from .random_models import (
    SPEECH_CASES,
    Pair,
    SpeechCase,
    assert_logits_match,
    edit_config,
    features,
    save_speech,
    speech_ids,
    tensor,
    text_ids,
)

LORA = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}


def in_memory(name: str) -> str:
    """From the saved layout to that of transformers >= 5 in memory."""
    for old, new in (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("encoder.", "model.encoder."),
        ("projector.", "model.projector."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def nested(name: str) -> str:
    """From the saved layout to that with one `model` more."""
    for old, new in (
        ("language_model.model.", "language_model.model.model."),
        ("language_model.lm_head.", "language_model.model.lm_head."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


LAYOUTS = {"saved": lambda name: name, "in-memory": in_memory, "nested": nested}


def rename(file: Path, change) -> None:
    tensors = {change(name): value for name, value in load_file(file).items()}
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


@torch.no_grad()
def compare(pair: Pair) -> None:
    config = pair.ours.config
    x = features(1, 21, config.encoder_config.input_dim)
    ids = speech_ids(1, -(-21 // config.window_size) * config.window_size // config.downsample_rate)
    reference = pair.reference(input_ids=tensor(ids), input_features=tensor(x)).logits
    assert_logits_match(pair.ours(mx.array(ids), input_features=mx.array(x)).logits, reference)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tied, tmp_path):
    """The three sets of tensor names."""
    reference = save_speech(SpeechCase(21, tied=tied), tmp_path)
    rename(tmp_path / "model.safetensors", LAYOUTS[layout])
    compare(Pair.load(reference, tmp_path))


@pytest.mark.parametrize("prefix", ["base_model.model.", ""], ids=["prefix", "no-prefix"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapter_layouts(layout, prefix, tmp_path):
    """The same names in an adapter, as peft (with a prefix) and transformers' 4.x saved them."""
    reference = save_speech(SpeechCase(22, lora=LORA), tmp_path)
    file = tmp_path / "adapter_model.safetensors"

    def change(name: str) -> str:
        name = name.removeprefix("base_model.model.")
        assert name.startswith("model.language_model.layers.")
        saved = name.replace("model.language_model.", "language_model.model.")
        return prefix + LAYOUTS[layout](saved)

    rename(file, change)
    compare(Pair.load(reference, tmp_path))


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_adapter_patterns_with_whole_names(option, tmp_path):
    """A pattern is about the names in the model that the adapter was trained on, which are those in
    the adapter's file."""
    lora = LORA | {option: {r"model\.language_model\.layers\.1\.self_attn\.q_proj": 2}}
    compare(Pair.load(save_speech(SpeechCase(23, lora=lora), tmp_path), tmp_path))


TARGETS = {
    "ends": {},
    "all-linear": {"target_modules": "all-linear"},
    "expression": {"target_modules": r"model\.language_model\..*\.(q|k)_proj"},
    "layer": {"layers_to_transform": 1},
    "layers-of-encoder": {
        "target_modules": ["up_proj", "to_q"],
        "layers_to_transform": [0, 2],
        "layers_pattern": ["h", "layers"],
    },
    "excluded-end": {"exclude_modules": ["0.self_attn.q_proj"]},
    "excluded-expression": {"exclude_modules": r"model\.language_model\.layers\.1\..*"},
    "excluded-of-all": {"target_modules": "all-linear", "exclude_modules": ["to_q", "down_proj"]},
}


@pytest.mark.parametrize("name", TARGETS)
@torch.no_grad()
def test_adapter_saved_by_peft(name, tmp_path):
    """A `PeftModel` around the whole, saved by peft itself.

    Ours refuses an adapter on other modules than adapter_config.json names, so it also has to read
    as peft does which those are; peft saves a list of ends, here what it was told is put back.
    """
    case = SpeechCase(24, tied=False)
    options = LORA | TARGETS[name]
    adapted = get_peft_model(save_speech(case, tmp_path), LoraConfig(**options))
    generator = torch.Generator().manual_seed(3)
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    adapted.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | options))
    compare(Pair.load(adapted.eval(), tmp_path))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("places", ["top", "text", "contradiction", "nowhere"])
def test_where_tying_is_said(places, tied, tmp_path):
    """Whether the head is tied comes from either place, or else from the tensors."""
    reference = save_speech(SpeechCase(25, tied=tied), tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    text["tie_word_embeddings"] = tied
    if places in ("top", "nowhere"):
        del text["tie_word_embeddings"]
    if places == "contradiction":
        text["tie_word_embeddings"] = not tied
    top = tied if places in ("top", "contradiction") else None
    edit_config(tmp_path, text_config=text, tie_word_embeddings=top)
    compare(Pair.load(reference, tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["two-layers-untied-lora", "five-layers"])
def test_half_precision_files(name, dtype, tmp_path):
    """Weights stored in half precision, computed with in float32."""
    reference = save_speech(SPEECH_CASES[name], tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        halved = {
            k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(file).items()
        }
        file.unlink()
        save_file(halved, file, metadata={"format": "pt"})
    edit_config(tmp_path, dtype=str(dtype).removeprefix("torch."))
    # not `reference.to(dtype)`: that would round the rotary frequencies, which no file holds
    rotary = list(reference.model.language_model.rotary_emb.buffers())
    for value in [*reference.parameters(), *reference.buffers()]:
        if value.is_floating_point() and not any(value is buffer for buffer in rotary):
            value.data = value.data.to(dtype).float()
    pair = Pair.load(reference, tmp_path)
    assert pair.ours.dtype == mx.float32
    compare(pair)


def test_sharded_files(tmp_path):
    """Weights in several files with an index."""
    reference = save_speech(SpeechCase(26), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    compare(Pair.load(reference, tmp_path))


@pytest.mark.parametrize("version", ["4.57.1", "5.9.2", None])
@torch.no_grad()
def test_logits_are_divided_as_the_saving_version_does(version, tmp_path):
    """Granite Speech divides its logits by `logits_scaling` up to transformers 5.9, no more since;
    the text decoder alone always does. Within 1e-4."""
    reference = save_speech(SpeechCase(27), tmp_path)
    old = tmp_path / "old"
    shutil.copytree(tmp_path, old)
    edit_config(old, transformers_version=version)
    ids, x = speech_ids(1, 6), features(1, 20, 24)
    logits = reference(input_ids=tensor(ids), input_features=tensor(x)).logits
    scaling = reference.config.text_config.logits_scaling
    assert scaling == 4.0
    inputs = {"input_features": mx.array(x)}
    assert_logits_match(Pair.load(None, tmp_path).ours(mx.array(ids), **inputs).logits, logits)
    divided = Pair.load(None, old).ours(mx.array(ids), **inputs).logits
    assert_logits_match(divided, logits / scaling)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_audio_token_in_an_answer(num_beams, tmp_path):
    """The same ids where the model itself says the audio token: it stands for no recording then,
    and is fed back as token 0."""
    reference = save_speech(SpeechCase(28), tmp_path)
    options = {"max_new_tokens": 8, "num_beams": num_beams}
    prompt = tensor(text_ids(1, 6))
    mask = torch.ones_like(prompt)

    def generate() -> list[int]:
        answer = reference.generate(input_ids=prompt, attention_mask=mask, **options)
        return answer[0].tolist()

    for said in set(generate()[6:-1]) - set(prompt[0].tolist()):
        reference.config.audio_token_index = said
        expected = generate()
        if said in expected[:-1]:
            break
    else:
        raise AssertionError("no answer with the audio token: choose another seed")
    edit_config(tmp_path, audio_token_index=said)
    ours = Pair.load(reference, tmp_path).ours.generate(mx.array(prompt.numpy()), **options)
    assert ours[0].tolist() == expected


@pytest.mark.parametrize("name", ["two-layers-untied-lora", "plus-input-and-middle"])
def test_transformers_reads_the_same_folder(name, tmp_path):
    """What the tests above call the reference is what transformers loads from the folder."""
    saved = save_speech(SPEECH_CASES[name], tmp_path)
    loaded = type(saved).from_pretrained(tmp_path).eval()
    assert isinstance(loaded, GraniteSpeechForConditionalGeneration) or SPEECH_CASES[name].plus
    compare(Pair(loaded, load_model(tmp_path, dtype=mx.float32), tmp_path))


@torch.no_grad()
def test_bundled_checkpoint(tiny_folder):
    """The bundled model on random features: greedy and beam ids, logits within 1e-4 once they are
    divided by `logits_scaling`; undivided, as transformers gives them, they are as large as 50."""
    reference = GraniteSpeechForConditionalGeneration.from_pretrained(
        tiny_folder, dtype=torch.float32
    ).eval()
    pair = Pair.load(reference, tiny_folder)
    x = features(1, 77, 160)
    ids = np.concatenate([[[5, 6]], np.full((1, 18), 4), [[7, 8, 9]]], axis=1)
    logits = reference(input_ids=tensor(ids), input_features=tensor(x)).logits
    ours = pair.ours(mx.array(ids), input_features=mx.array(x)).logits
    scaling = reference.config.text_config.logits_scaling
    assert_logits_match(ours / scaling, logits / scaling)
    for num_beams in (1, 4):
        expected = reference.generate(
            input_ids=tensor(ids),
            input_features=tensor(x),
            attention_mask=torch.ones(ids.shape),
            do_sample=False,
            num_beams=num_beams,
            max_new_tokens=12,
        )
        got = pair.ours.generate(
            mx.array(ids), input_features=mx.array(x), num_beams=num_beams, max_new_tokens=12
        )
        assert got.tolist() == expected.tolist()
