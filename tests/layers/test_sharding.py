"""Which part of which tensor a rank has, and how many ranks there may be."""

from __future__ import annotations

import copy

import mlx.core as mx
import pytest
from sharded import Ranks

from mlx_speech import UnsupportedOptionError
from mlx_speech.layers.attention import AttentionMask
from mlx_speech.layers.sharding import ShardingGroup, check_even

LAYER = "language_model.model.layers.3"


def group(rank: int = 1, size: int = 2) -> ShardingGroup:
    return ShardingGroup(Ranks(rank, size), {"KV heads": 6}, "granite")


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        (f"{LAYER}.self_attn.q_proj.weight", 0),
        ("layers.0.self_attn.v_proj.bias", 0),
        (f"{LAYER}.mlp.gate_proj.scales", 0),
        (f"{LAYER}.mlp.up_proj.biases", 0),
        (f"{LAYER}.self_attn.o_proj.weight", 1),
        (f"{LAYER}.mlp.down_proj.scales", 1),
        (f"{LAYER}.mlp.down_proj.bias", None),
        # under an adapter, in a model and in files
        (f"{LAYER}.self_attn.k_proj.base.weight", 0),
        (f"{LAYER}.self_attn.q_proj.base_layer.weight", 0),
        (f"{LAYER}.self_attn.q_proj.lora_a", None),
        (f"{LAYER}.self_attn.q_proj.lora_b", 0),
        (f"{LAYER}.self_attn.o_proj.lora_A.weight", 1),
        (f"{LAYER}.self_attn.o_proj.lora_B.default.weight", None),
        (f"{LAYER}.saved.mlp.down_proj.weight", 1),
        (f"{LAYER}.self_attn.saved.q_proj.weight", 0),
        (f"{LAYER}.mlp.down_proj.saved.weight", 1),
        # what is in no decoder layer, or whole in each
        (f"{LAYER}.input_layernorm.weight", None),
        (f"{LAYER}.self_attn.q_proj.weight_scale_inv", None),
        ("encoder.layers.0.attn.to_q.weight", None),
        ("projector.qformer.layers.0.mlp.fc1.weight", None),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_axes(name, axis):
    assert group().axis(name, (4, 6)) == axis
    tensor = mx.arange(24).reshape(4, 6)
    parts = {0: tensor[2:], 1: tensor[:, 3:]}
    expected = parts.get(axis, tensor)
    if name.endswith(".down_proj.bias"):
        assert mx.array_equal(group(rank=0).part(name, tensor), tensor).item()
        expected = mx.zeros_like(tensor)
    assert mx.array_equal(group().part(name, tensor), expected).item()
    if axis is not None:
        assert group().whole_shape(name, expected.shape) == (4, 6)


def test_biases_of_rows_are_divided():
    bias = group(rank=2, size=3).part("mlp.up_proj.bias", mx.arange(6))
    assert bias.tolist() == [4, 5]


def test_what_cannot_be_divided_is_left():
    """It does not fit the model, which says so."""
    assert group().axis("mlp.up_proj.weight", (3, 6)) is None
    assert group().axis("mlp.up_proj.weight", ()) is None
    assert group().part("mlp.down_proj.weight", mx.zeros((4, 0))).shape == (4, 0)


@pytest.mark.parametrize(
    ("counts", "size", "message"),
    [
        ({"KV heads": 4, "heads": 16}, 3, "x has 4 KV heads: tensor parallelism takes 2 or 4 "),
        ({"KV heads": 8, "units": 12}, 8, "x has 12 units: tensor parallelism takes 2 or 4 "),
        ({"KV heads": 8}, 3, "x has 8 KV heads: tensor parallelism takes 2, 4 or 8 processes, not"),
        ({"KV heads": 2, "units": 12}, 4, "2 KV heads: tensor parallelism takes 2 processes, not"),
        ({"KV heads": 1}, 2, "1 KV heads: tensor parallelism takes no more than one process, not"),
    ],
)
def test_numbers_of_ranks(counts, size, message):
    with pytest.raises(UnsupportedOptionError, match=message) as error:
        check_even(counts, size, "x")
    assert str(error.value).endswith(f", not {size}")
    check_even(counts, 1, "x")


def test_groups_of_quantized_weights():
    """As many as divide these and the heads."""
    name, shape = f"{LAYER}.mlp.down_proj.scales", (64, 9)
    assert group(size=3).axis(name, shape) == 1
    message = "granite has 9 groups of quantized weights in a row of down_proj: tensor parallelism"
    with pytest.raises(UnsupportedOptionError, match=f"{message} takes 3 processes, not 2"):
        group(size=2).axis(name, shape)


def test_masks():
    """Those of all heads are cut; others are for any."""
    mask = mx.random.bernoulli(0.5, (2, 6, 3, 4))
    own = group(rank=1, size=3)
    assert mx.array_equal(own.own_heads(mask, 6), mask[:, 2:4]).item()
    pair = own.own_heads(AttentionMask(mask, mask[..., :1]), 6)
    assert isinstance(pair, AttentionMask)
    assert mx.array_equal(pair.seen, mask[:, 2:4, :, :1]).item()
    for other in (None, "causal", mask[:, :1], mask[0, 0]):
        assert own.own_heads(other, 6) is other


def test_a_copy_is_of_the_same_ranks():
    own = group()
    assert copy.deepcopy([own])[0] is own
