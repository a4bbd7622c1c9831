"""The encoder's second CTC head, `out_llm.safetensors`: part of the model where the file is there,
and only there."""

from __future__ import annotations

import json
import os

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import TINY, edit_json
from conversions import same
from mlx.utils import tree_flatten

from convert import convert
from mlx_speech import CheckpointError, GraniteSpeechForConditionalGeneration
from mlx_speech.loading import load_model
from mlx_speech.models.granite_speech.pooling import pool_frames

FILE = "out_llm.safetensors"
LAYER = "encoder.out_llm"
QUANTIZED = {"weight", "scales", "biases", "bias"}


def stored(folder, file: str = FILE) -> dict[str, mx.array]:
    return mx.load(str(folder / file))


def own(model) -> dict[str, mx.array]:
    """The layer's tensors."""
    return dict(tree_flatten(model.encoder.out_llm.parameters()))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_it_is_a_layer_like_others(dtype):
    model = load_model(TINY, dtype=dtype)
    assert model.has_bpe_head
    assert isinstance(model.encoder.out_llm, nn.Linear)
    assert not model.encoder.out_llm.training
    assert same(own(model), {name: array.astype(dtype) for name, array in stored(TINY).items()})


def test_where_there_is_no_file(tiny_copy, tmp_path):
    """Nor does one stay that an earlier model had in the same folder."""
    (tiny_copy / FILE).unlink()
    model = load_model(tiny_copy)
    assert not model.has_bpe_head
    load_model(TINY).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / FILE).exists()
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / FILE).exists()
    assert not load_model(tmp_path / "saved").has_bpe_head
    assert not GraniteSpeechForConditionalGeneration(model.config).has_bpe_head


class TestRoundTrips:
    def test_saved_as_other_programs_read_it(self, tmp_path):
        """And model.safetensors has no tensor that they would not expect."""
        load_model(TINY, dtype="auto").save_pretrained(tmp_path, max_shard_size="1MB")
        assert same(stored(tmp_path), stored(TINY))
        weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())[
            "weight_map"
        ]
        assert weight_map.keys() == stored(TINY, "model.safetensors").keys()
        assert same(own(load_model(tmp_path, dtype="auto")), stored(TINY))

    def test_other_embeddings_than_labels(self, tmp_path):
        model = load_model(TINY)
        model.resize_token_embeddings(520)
        model.save_pretrained(tmp_path)
        assert same(own(load_model(tmp_path)), own(model))

    def test_quantized_in_memory(self, tmp_path):
        model = load_model(TINY, quantization_config={"bits": 4})
        assert model.encoder.out_llm.bits == 8
        model.save_pretrained(tmp_path)
        assert stored(tmp_path).keys() == QUANTIZED
        again = load_model(tmp_path)
        assert isinstance(again.encoder.out_llm, nn.QuantizedLinear)
        assert same(own(again), own(model))

    @pytest.mark.parametrize("dtype", [None, "float16"])
    def test_converted(self, tmp_path, dtype):
        (result,) = convert(TINY, tmp_path / "out", dtype=dtype)
        expected = stored(TINY)
        if dtype:
            expected = {name: array.astype(mx.float16) for name, array in expected.items()}
        assert same(stored(result.folder), expected)
        assert not any("out_llm" in n for n in stored(result.folder, "model.safetensors"))

    def test_converted_to_4_and_8_bits(self, tmp_path):
        """8 bits in both, as the encoder's other layers; and back."""
        four, eight = convert(TINY, tmp_path / "out", quantize=True, q_bits=[4, 8])
        for result in (four, eight):
            (row,) = [row for row in result.plan.rows if row.path == LAYER]
            assert (row.settings["bits"], row.note) == (8, "")
            assert row.before == sum(array.nbytes for array in stored(TINY).values())
            assert row.after == sum(array.nbytes for array in stored(result.folder).values())
            assert row in result.plan.parts()["encoder"].rows
            assert stored(result.folder).keys() == QUANTIZED
        found = load_model(four.folder, dtype="auto").encoder.out_llm
        expected = load_model(TINY, dtype="auto").encoder.out_llm.to_quantized(64, 8)
        assert same(dict(tree_flatten(found.parameters())), dict(expected.parameters()))
        (plain,) = convert(eight.folder, tmp_path / "plain", dequantize=True)
        back = stored(plain.folder)
        assert back.keys() == {"weight", "bias"}
        difference = mx.abs(back["weight"] - stored(TINY)["weight"]).astype(mx.float32)
        assert 0 < difference.max().item() < 0.02

    def test_a_dry_run_counts_it(self, tiny_copy, tmp_path):
        (whole,) = convert(tiny_copy, tmp_path / "out", dry_run=True)
        (tiny_copy / FILE).unlink()
        (less,) = convert(tiny_copy, tmp_path / "out", dry_run=True)
        size = sum(array.nbytes for array in stored(TINY).values())
        assert whole.plan.before - less.plan.before == whole.plan.after - less.plan.after == size


class TestDamage:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"weight": mx.ones((512, 64))}, r"out_llm.weight \(512, 64\) instead of \(512, 128\)"),
            ({"weight": mx.ones((600, 128)), "bias": mx.ones(600)}, r"instead of \(513, 128\)"),
            ({"weight": mx.ones((500, 128))}, r"out_llm.bias \(512,\) instead of \(500,\)"),
            ({"weight": mx.ones((0, 128)), "bias": mx.ones(0)}, r"instead of \(1, 128\)"),
            ({"weight": mx.array(1.0)}, r"out_llm.weight \(\) instead of"),
            ({"weight": mx.ones((512, 128), mx.int32)}, "out_llm.weight is stored as I32"),
            ({"weight": mx.full((512, 128), mx.nan)}, "out_llm.weight has values that are NaN"),
            ({"bias": None}, "tensors missing: encoder.out_llm.bias"),
            ({"weight": None}, "not part of this model: encoder.out_llm.bias"),
            ({"scale": mx.ones(1)}, "not part of this model: encoder.out_llm.scale"),
        ],
    )
    def test_tensors(self, tiny_copy, changes, message):
        tensors = {name: array + 0 for name, array in stored(tiny_copy).items()} | changes
        mx.eval(tensors)
        kept = {name: array for name, array in tensors.items() if array is not None}
        mx.save_safetensors(str(tiny_copy / FILE), kept)
        with pytest.raises(CheckpointError, match=message):
            load_model(tiny_copy)

    def test_cut_file(self, tiny_copy):
        os.truncate(tiny_copy / FILE, 100_000)
        with pytest.raises(CheckpointError, match=f"{FILE}: not a whole safetensors file"):
            load_model(tiny_copy)

    def test_a_second_one(self, tiny_copy):
        weights = {f"{LAYER}.{name}": array for name, array in stored(tiny_copy).items()}
        mx.save_safetensors(str(tiny_copy / "model-2.safetensors"), weights)
        files = ("model.safetensors", "model-2.safetensors")
        weight_map = {name: file for file in files for name in stored(tiny_copy, file)}
        edit_json(tiny_copy / "model.safetensors.index.json", weight_map=weight_map)
        with pytest.raises(CheckpointError, match=f"stands in {FILE} and in another file"):
            load_model(tiny_copy)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("number", [0, 1, 4, 6, 9])
def test_pooling(number, dtype):
    """Against the same group by group; a group that is all blank is next to nothing."""
    frames = mx.random.normal((2, number, 3), key=mx.random.key(number)).astype(dtype)
    weights = mx.random.uniform(shape=(2, number), key=mx.random.key(number + 1))
    weights = mx.where(mx.arange(number) < 4, 0.0, weights) if number > 6 else weights
    found = pool_frames(frames, weights)
    assert found.dtype == dtype
    x, w = np.array(frames.astype(mx.float32)), np.array(weights)
    groups = [slice(start, start + 4) for start in range(0, number, 4)]
    expected = [
        (w[:, g, None] * x[:, g]).sum(axis=1) / (w[:, g].sum(axis=1, keepdims=True) + 1e-8)
        for g in groups
    ]
    assert found.shape == (2, len(groups), 3)
    for group, vector in enumerate(expected):
        np.testing.assert_allclose(found[:, group].astype(mx.float32), vector, atol=1e-2)
    if dtype == mx.float32 and number:
        np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-5)
    if number > 6:
        assert mx.abs(found[:, 0]).max().item() == 0
