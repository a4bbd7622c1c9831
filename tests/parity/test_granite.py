"""The text decoder on its own, and what generates from it, against GraniteForCausalLM.

Tolerances are absolute: 1e-4 on logits of size 1 to 30, float32.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig

from mlx_speech.generation.api import prefill
from mlx_speech.layers.lora import use_adapter

from .random_models import (
    TEXT,
    Pair,
    assert_close,
    assert_logits_match,
    edit_config,
    save_granite,
    tensor,
    text_ids,
)
from .ropes import ROPES

SHAPES = {
    "no-layer-scaling": {
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "tie_word_embeddings": True,
    },
    "all-multipliers-tied": {"tie_word_embeddings": True},
    "all-multipliers-untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "attention-bias-only": {"attention_bias": True},
    "mlp-bias-only": {"mlp_bias": True, "tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1, "num_attention_heads": 8},
    "wide-heads": {"head_dim": 14},
    "one-layer": {"num_hidden_layers": 1},
    "five-layers": {"num_hidden_layers": 5, "hidden_size": 64},
    "gelu": {"hidden_act": "gelu"},
    "gelu-tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "rms-eps": {"rms_norm_eps": 0.1},
}


@torch.no_grad()
def compare_logits(pair: Pair, length: int = 70) -> None:
    """Logits of the whole, and of the same in three pieces through a cache."""
    ids = text_ids(3, length)
    reference = pair.reference(input_ids=tensor(ids)).logits
    assert_logits_match(pair.ours(mx.array(ids)).logits, reference)
    cache = pair.ours.make_cache()
    pieces = [
        pair.ours(mx.array(part), past_key_values=cache).logits
        for part in np.split(ids, [length // 2, length - 1], axis=1)
    ]
    assert_logits_match(mx.concatenate(pieces, axis=1), reference)


@pytest.mark.parametrize("name", SHAPES)
def test_logits(name, tmp_path):
    """All positions' logits within 1e-4."""
    compare_logits(Pair.load(save_granite(tmp_path, 11, **SHAPES[name]), tmp_path))


@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling", "rope_scaling-type"])
# cached keys of longrope are rotated as the length at that time demanded: see test_decoders.py
@pytest.mark.parametrize("name", [name for name in ROPES if not name.startswith("longrope")])
def test_rope(name, form, tmp_path):
    """Logits within 1e-4 whichever way config.json tells the rotary embedding, 70 positions."""
    rope = ROPES[name]
    reference = save_granite(tmp_path, 12, rope_parameters=dict(rope))
    if form != "rope_parameters":
        scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
        if form == "rope_scaling-type":
            scaling["type"] = scaling.pop("rope_type")
        scaling = None if name == "default" else scaling
        changes = {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}
        edit_config(tmp_path, rope_parameters=None, **changes)
        read_back = AutoConfig.from_pretrained(tmp_path).rope_parameters
        assert {k: v for k, v in read_back.items() if k != "type"} == rope
    compare_logits(Pair.load(reference, tmp_path))


def test_rope_rules_differ(tmp_path):
    """That the rules compared above do give different logits at these lengths."""
    ids = mx.array(text_ids(1, 70))
    logits = []
    for name, rope in ROPES.items():
        save_granite(tmp_path / name, 12, rope_parameters=dict(rope))
        logits.append(np.array(Pair.load(None, tmp_path / name).ours(ids).logits))
    for i, one in enumerate(logits):
        for other in logits[:i]:
            assert np.abs(one - other).max() > 0.05


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_loss_and_hidden_states(padding, tmp_path):
    """Loss within 1e-5 relative, every layer's hidden states within 1e-4 at real tokens."""
    pair = Pair.load(save_granite(tmp_path, 13, num_hidden_layers=3), tmp_path)
    ids = text_ids(3, 17)
    mask, labels = np.ones_like(ids), ids.copy()
    labels[:, :4] = -100
    if padding == "left":
        mask[1, :3] = 0
    elif padding == "right":
        mask[1, -3:], labels[1, -3:] = 0, -100
    reference = pair.reference(
        input_ids=tensor(ids),
        attention_mask=tensor(mask),
        labels=tensor(labels),
        output_hidden_states=True,
    )
    ours = pair.ours(
        mx.array(ids),
        attention_mask=mx.array(mask),
        labels=mx.array(labels),
        output_hidden_states=True,
    )
    real = mask.astype(bool)
    assert ours.loss.item() == pytest.approx(reference.loss.item(), rel=1e-5)
    assert_logits_match(mx.array(np.array(ours.logits)[real]), reference.logits[tensor(real)])
    assert len(ours.hidden_states) == len(reference.hidden_states) == 4
    for state, expected in zip(ours.hidden_states, reference.hidden_states, strict=True):
        assert_close(mx.array(np.array(state)[real]), expected[tensor(real)], 1e-4)


@torch.no_grad()
def test_inputs_embeds(tmp_path):
    """Logits from embeddings, before the embedding multiplier, within 1e-4."""
    pair = Pair.load(save_granite(tmp_path, 14), tmp_path)
    x = np.random.default_rng(3).normal(0, 0.4, (2, 9, TEXT["hidden_size"])).astype(np.float32)
    reference = pair.reference(inputs_embeds=tensor(x)).logits
    assert_logits_match(pair.ours(inputs_embeds=mx.array(x)).logits, reference)


ADAPTERS = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "rank-stabilised": {"target_modules": ["k_proj", "down_proj"], "use_rslora": True},
    "rank-pattern": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 7},
    },
    "alpha-pattern": {
        "target_modules": ["q_proj", "up_proj"],
        "alpha_pattern": {"up_proj": 1, r".*\.0\.self_attn\.q_proj": 11},
    },
    "first-pattern-counts": {
        "target_modules": ["q_proj"],
        "use_rslora": True,
        "rank_pattern": {r"layers\.0\..*": 2, "q_proj": 6},
        "alpha_pattern": {"q_proj": 3, r"layers\.0\..*": 30},
    },
    "pattern-for-whole-name": {
        "target_modules": ["q_proj"],
        "rank_pattern": {r"model\.layers\.0\.self_attn\.q_proj": 2},
        "alpha_pattern": {r"^model\.layers\.1\.self_attn\.q_proj": 30},
    },
}


@pytest.mark.parametrize("name", ADAPTERS)
@torch.no_grad()
def test_adapter(name, tmp_path):
    """An adapter that peft made, saved and read back: logits on and off, within 1e-4.

    Read back by peft, too: it saves patterns in alphabetical order, and the first one counts.
    """
    base = save_granite(tmp_path, 15, tie_word_embeddings=True)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, **ADAPTERS[name]))
    randomize_adapter(adapted)
    adapted.save_pretrained(tmp_path)
    fresh = save_granite(tmp_path, 15, tie_word_embeddings=True)
    adapted = PeftModel.from_pretrained(fresh, tmp_path).eval()
    pair = Pair.load(adapted, tmp_path)
    ids = text_ids(2, 15)
    on = pair.ours(mx.array(ids)).logits  # a text model has no other use for it
    with use_adapter(False):
        off = pair.ours(mx.array(ids)).logits
    reference = adapted(input_ids=tensor(ids)).logits
    assert_logits_match(on, reference)
    with adapted.disable_adapter():
        plain = adapted(input_ids=tensor(ids)).logits
    assert_logits_match(off, plain)
    assert (reference - plain).abs().max() > 0.1


def randomize_adapter(adapted: PeftModel) -> None:
    generator = torch.Generator().manual_seed(77)
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            drawn = torch.randn(value.shape, generator=generator)
            value.data.copy_(0.8 * drawn / value.shape[1] ** 0.5)


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> Pair:
    """A decoder whose answers end at different lengths."""
    folder = tmp_path_factory.mktemp("generator")
    # flatter than the others, so that beams compete
    options = {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "logits_scaling": 8.0}
    return Pair.load(save_granite(folder, 18, vocab_size=40, **options), folder)


def compare_generation(pair: Pair, ids: np.ndarray, mask=None, **options) -> None:
    """Generates on both sides: the same ids, with beams the same scores within 1e-4."""
    mask = np.ones_like(ids) if mask is None else mask
    options = {"max_new_tokens": 16, "pad_token_id": 1} | options
    reference = pair.reference.generate(
        input_ids=tensor(ids),
        attention_mask=tensor(mask),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    inputs = {"attention_mask": mx.array(mask), **options}
    assert_same_ids(pair.ours.generate(mx.array(ids), **inputs), reference.sequences)
    if options.get("num_beams", 1) > 1:
        rows = prefill(pair.ours, mx.array(ids), **inputs).rows()
        scores = reference.sequences_scores.tolist()
        assert [row.score for row in rows] == pytest.approx(scores, abs=1e-4)


def assert_same_ids(ours: mx.array, reference: torch.Tensor) -> None:
    """Equal but for columns of padding at the end, which transformers' beam search may have."""
    width = ours.shape[1]
    assert ours.tolist() == reference[:, :width].tolist()
    assert set(reference[:, width:].flatten().tolist()) <= {1}


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
@pytest.mark.parametrize("eos", [0, [0, 5, 6, 7]], ids=["one-eos", "four-eos"])
def test_greedy(generator, eos, penalty):
    """The same ids for a batch of three, rows that end early padded."""
    ids = text_ids(3, 8, seed=5, vocab=40)
    compare_generation(generator, ids, eos_token_id=eos, repetition_penalty=penalty)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("eos", [3, [0, 5, 6, 7]], ids=["one-eos", "four-eos"])
def test_beam_search(generator, eos, num_beams, length_penalty, early_stopping):
    """The same ids, and scores within 1e-4, for a batch of four."""
    compare_generation(
        generator,
        text_ids(4, 6, seed=2, vocab=40),
        eos_token_id=eos,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_beam_search_at_the_limit(generator, max_new_tokens):
    """The same ids where hardly any token fits."""
    ids = text_ids(2, 6, vocab=40)
    compare_generation(
        generator, ids, eos_token_id=[0, 5], num_beams=3, max_new_tokens=max_new_tokens
    )


def test_beam_search_options_matter(generator):
    """That the grid above holds cases in which each option changes the answer."""
    ids = mx.array(text_ids(4, 6, seed=2, vocab=40))
    common = {"max_new_tokens": 16, "num_beams": 5, "eos_token_id": [0, 5, 6, 7], "pad_token_id": 1}

    def answers(**options):
        return generator.ours.generate(ids, **{**common, **options}).tolist()

    by_penalty = [answers(length_penalty=p) for p in (0.0, 1.0, 2.5)]
    assert by_penalty[0] != by_penalty[1] != by_penalty[2]
    grid = [{"length_penalty": p, "num_beams": n} for p in (-1.0, 1.0, 2.5) for n in (2, 5)]
    for one, other in ((True, False), (False, "never")):
        assert any(
            answers(early_stopping=one, **options) != answers(early_stopping=other, **options)
            for options in grid
        )
    assert answers() != answers(num_beams=2)
    assert answers() != answers(eos_token_id=3)


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_left_padded_prompts(generator, num_beams, penalty):
    """The same ids for prompts of different lengths, greedily and with beams.

    Random ids stand in the padding, which must not count, not even for the penalty.
    """
    ids = text_ids(3, 9, seed=2, vocab=40)
    mask = np.ones_like(ids)
    for row, padding in enumerate((0, 5, 2)):
        mask[row, :padding] = 0
    compare_generation(
        generator,
        ids,
        mask,
        eos_token_id=[0, 5, 6],
        num_beams=num_beams,
        repetition_penalty=penalty,
    )
