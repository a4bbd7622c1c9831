"""Weights of new models: as many deviations as there are configurations, zeros and ones."""

from __future__ import annotations

import mlx.core as mx
import pytest
from conftest import TINY, TINY_S2T
from mlx.utils import tree_flatten

from mlx_speech import (
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
)

SMALL = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 4}


def deviations(model) -> dict[str, float]:
    return {name: mx.std(value).item() for name, value in tree_flatten(model.parameters())}


def test_initializer_range():
    for wanted in (0.02, 0.3):
        model = LlamaForCausalLM(LlamaConfig(**SMALL, initializer_range=wanted, mlp_bias=True))
        for name, found in deviations(model).items():
            constant = "norm" in name or name.endswith("bias")
            assert found == pytest.approx(0 if constant else wanted, rel=0.1), name
        assert model.model.norm.weight.min().item() == 1
        assert not model.model.layers[0].mlp.up_proj.bias.any().item()


def test_padding():
    model = LlamaForCausalLM(LlamaConfig(**SMALL, pad_token_id=7))
    rows = model.model.embed_tokens.weight.any(axis=1).tolist()
    assert rows == [row != 7 for row in range(200)]
    assert model.lm_head.weight.any(axis=1).all().item()


def test_seed():
    drawn = []
    for seed in (1, 1, 2):
        mx.random.seed(seed)
        drawn.append(LlamaForCausalLM(LlamaConfig(**SMALL)).lm_head.weight)
    assert mx.array_equal(drawn[0], drawn[1]).item()
    assert not mx.array_equal(drawn[0], drawn[2]).item()


def test_parts_have_their_own():
    config = GraniteSpeechConfig.from_pretrained(TINY)
    config.text_config.initializer_range = 0.1
    config.projector_config.initializer_range = 0.3
    found = deviations(GraniteSpeechForConditionalGeneration(config))
    approximately = {
        "language_model.model.layers.0.self_attn.q_proj.weight": 0.1,
        "projector.qformer.encoder.layer.0.attention.attention.query.weight": 0.3,
        "projector.query": 1,
        "projector.linear.weight": 0.02,
        "encoder.layers.0.conv.depth_conv.weight": 0.02,
        "encoder.layers.0.attn.rel_pos_emb.weight": 0.02,
        "encoder.layers.0.conv.depth_conv.bias": 0,
        "encoder.input_linear.weight": 0.02,
    }
    for name, wanted in approximately.items():
        assert found[name] == pytest.approx(wanted, rel=0.15), name


def test_init_std():
    config = Speech2TextConfig.from_pretrained(TINY_S2T)
    config.init_std = 0.2
    model = Speech2TextForConditionalGeneration(config)
    found = deviations(model)
    for name in ("encoder.conv.conv_layers.0.weight", "decoder.layers.0.fc1.weight"):
        assert found[f"model.{name}"] == pytest.approx(0.2, rel=0.15)
    assert not model.model.decoder.embed_tokens.weight[config.pad_token_id].any().item()
