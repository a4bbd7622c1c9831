"""Tensors and the model that they are put into: all of them, in one type, or an error."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import TINY, edit_json, resave, transcript
from mlx.utils import tree_flatten
from pytorch_files import save_pytorch_bin
from safetensors_files import store_as

from convert import convert
from mlx_speech import (
    CheckpointError,
    GraniteForCausalLM,
    GraniteSpeechForConditionalGeneration,
    InputError,
    load,
)
from mlx_speech.checkpoint.safetensors import read_safetensors
from mlx_speech.checkpoint.weights import (
    assign_weights,
    cast,
    check_finite,
    checkpoint_dtype,
    read_weights,
)
from mlx_speech.layers.lora import use_adapter
from mlx_speech.loading import load_model


def tensors(**changes) -> dict[str, mx.array]:
    """Of a linear layer from 3 to 2; None leaves one out."""
    whole = {"weight": mx.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "bias": mx.array([7.0, 8.0])}
    return {name: value for name, value in (whole | changes).items() if value is not None}


def test_assigned_to_the_model_of_their_names(tmp_path):
    layer = nn.Linear(3, 2)
    assign_weights(layer, tensors(), tmp_path)
    np.testing.assert_array_equal(layer(mx.array([1.0, 0.0, -1.0])), [1 - 3 + 7, 4 - 6 + 8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": None}, "1 tensors missing: bias$"),
        ({"scale": mx.ones(2)}, "1 tensors not part of this model: scale$"),
        (
            {"weight": mx.zeros((3, 2))},
            r"1 tensors of the wrong shape: weight \(3, 2\) instead of \(2, 3\)$",
        ),
        (
            {"bias": None, **{name: mx.ones(1) for name in "dacb"}},
            "1 tensors missing: bias; 4 tensors not part of this model: a, b, c, …$",
        ),
    ],
)
def test_what_does_not_fit(tmp_path, changes, message):
    layer = nn.Linear(3, 2)
    before = layer.weight
    with pytest.raises(CheckpointError, match=message):
        assign_weights(layer, tensors(**changes), tmp_path)
    assert layer.weight is before


def test_floats_alone_are_cast():
    layer = nn.Linear(64, 2).to_quantized(group_size=64, bits=4)
    packed = layer.weight
    cast(layer, mx.float16)
    assert layer.scales.dtype == layer.bias.dtype == mx.float16
    assert mx.array_equal(layer.weight, packed)
    assert layer.weight.dtype == mx.uint32


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float16", "torch_dtype": "float32"}, mx.float16),
        ({"torch_dtype": "bfloat16"}, mx.bfloat16),
        ({"text_config": {"dtype": "float16"}}, mx.bfloat16),
        ({"dtype": "int8"}, mx.bfloat16),
    ],
)
def test_type_of_a_checkpoint(config, expected):
    """Stated, or that of most numbers; integers do not count."""
    stored = {"a": mx.zeros(9, mx.bfloat16), "b": mx.zeros(4), "c": mx.zeros(4)}
    stored["d"] = mx.zeros(99, mx.uint32)
    assert checkpoint_dtype(config, stored) == expected
    assert checkpoint_dtype({}, {}) == mx.float32


def test_files_that_are_missing_or_damaged(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing; download it again"):
        read_safetensors(path)
    mx.save_safetensors(str(path), tensors())
    assert mx.array_equal(read_safetensors(path)["bias"], tensors()["bias"])
    whole = path.read_bytes()
    name = whole.index(b"bias")
    not_utf8 = whole[:name] + b"\xff" + whole[name + 1 :]
    cut = "not a whole safetensors file; download it again"
    damages = {b"": cut, whole[:7]: cut, whole[:40]: cut, whole[:-1]: cut, not_utf8: "not a valid"}
    for damaged, message in damages.items():
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            read_safetensors(path)


def test_a_tensor_that_stands_in_two_files(tmp_path):
    names = [f"model-{number}.safetensors" for number in (1, 2)]
    for name in names:
        mx.save_safetensors(str(tmp_path / name), tensors(weight=None))
    with pytest.raises(CheckpointError, match=r"tensor bias stands in model-2\.safetensors and in"):
        read_weights(tmp_path, {})


class TestStrictness:
    def test_missing_surplus_and_misshapen_tensors_are_listed(self, tiny_copy):
        def damage(weights):
            del weights["encoder.out.bias"]
            weights["encoder.extra\x1b[2J.weight"] = mx.zeros((2,))
            weights["projector.query"] = mx.zeros((1, 4, 128))
            return weights

        resave(tiny_copy, damage)
        with pytest.raises(CheckpointError) as raised:
            load(tiny_copy)
        message = str(raised.value)
        assert "1 tensors missing: encoder.out.bias" in message
        assert r"1 tensors not part of this model: 'encoder.extra\x1b[2J.weight'" in message
        assert "projector.query (1, 4, 128) instead of (1, 3, 128)" in message
        assert "\n" not in message

    def test_long_lists_are_cut(self, tiny_copy):
        resave(tiny_copy, lambda w: {k: v for k, v in w.items() if "layers.2." not in k})
        with pytest.raises(CheckpointError, match=r"38 tensors missing: (\S+, ){3}…"):
            load(tiny_copy)

    def test_missing_batch_norm(self, tiny_copy):
        name = "encoder.layers.0.conv.batch_norm.running_mean"
        resave(tiny_copy, lambda w: {k: v for k, v in w.items() if k != name})
        with pytest.raises(CheckpointError, match=f"{name}.* is missing"):
            load(tiny_copy)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda w: {**w, "language_model.model.layers.9.self_attn.q_proj.lora_A.weight":
                        mx.zeros((32, 128))}, r"layers\.9\.self_attn\.q_proj is no layer"),
            (lambda w: {k: v for k, v in w.items() if "layers.1.self_attn.v_proj.lora_B" not in k},
             r"layers\.1\.self_attn\.v_proj lacks"),
            (lambda w: {k: v[:, :-1] for k, v in w.items()}, "has shapes"),
            (lambda w: {**w, "weight": mx.zeros(3)}, "the adapter may have: weight"),
        ],
    )  # fmt: skip
    def test_bad_adapter_tensors(self, tiny_copy, damage, message):
        file = tiny_copy / "adapter_model.safetensors"
        weights = {k: v + 0 for k, v in mx.load(str(file)).items()}
        mx.eval(weights)
        mx.save_safetensors(str(file), damage(weights))
        with pytest.raises(CheckpointError, match=message):
            load(tiny_copy)

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ({"target_modules": ["q_proj", "v_proj"]}, r"6 modules .* missing: \S+layers\.1\."),
            ({"target_modules": r".*\.[qv]_proj"}, "6 modules .* missing"),
            ({"target_modules": r"model\.language_model\..*v_proj"}, "3 modules .* missing"),
            ({"target_modules": "all-linear"}, r"\d\d+ modules .* missing: encoder\."),
            ({"layers_to_transform": [0, 2]}, r"2 modules .* missing: \S+\.2\.\S+q_proj, \S+v"),
            ({"layers_to_transform": 3}, "2 modules .* missing"),
            ({"layers_to_transform": [0, 2], "layers_pattern": ["h", "layers"]}, "2 modules .* m"),
            ({"exclude_modules": ["0.self_attn.q_proj"]}, "6 modules .* missing"),
            ({"target_modules": ["q_proj"], "layers_to_transform": [0]}, "1 modules are not among"),
            ({"exclude_modules": r".*layers\.[0-3]\.\w+\.q_proj", "layers_to_transform": 0},
             r"1 modules are not among target_modules: \S+layers\.0\.self_attn\.q_proj"),
            ({"layers_to_transform": 0, "layers_pattern": "h"}, "2 modules are not among"),
        ],
    )  # fmt: skip
    def test_adapter_of_some_of_its_modules(self, tiny_copy, targets, message):
        """A file that holds layer 0 alone, whatever else adapter_config.json says there is."""
        file = tiny_copy / "adapter_model.safetensors"
        weights = {k: v + 0 for k, v in mx.load(str(file)).items() if ".layers.0." in k}
        mx.eval(weights)
        mx.save_safetensors(str(file), weights)
        edit_json(tiny_copy / "adapter_config.json", layers_to_transform=[0])
        load(tiny_copy)
        edit_json(tiny_copy / "adapter_config.json", layers_to_transform=None)
        edit_json(tiny_copy / "adapter_config.json", **targets)
        with pytest.raises(CheckpointError, match=f": adapter_model.safetensors: {message}"):
            load(tiny_copy)

    def test_adapter_of_no_modules(self, tiny_copy):
        file = tiny_copy / "adapter_model.safetensors"
        mx.save_safetensors(str(file), {}, {"format": "pt"})
        edit_json(tiny_copy / "adapter_config.json", target_modules=None)
        with pytest.raises(CheckpointError, match="no tensors in it"):
            load(tiny_copy)

    @pytest.mark.parametrize(
        "change",
        [
            {"lora_alpha": "x"},
            {"r": 0},
            {"r": "8"},
            {"rank_pattern": {"q_proj[": 4}},
            {"rank_pattern": {"q_proj": 0}},
            {"rank_pattern": ["q_proj"]},
            {"alpha_pattern": {"q_proj": "x"}},
            {"target_modules": "q_proj["},
            {"target_modules": 5},
            {"layers_to_transform": "0"},
            {"layer_replication": [[0, 4], [0, 4]]},
        ],
    )
    def test_damaged_adapter_config(self, tiny_copy, change):
        edit_json(tiny_copy / "adapter_config.json", **change)
        with pytest.raises(CheckpointError, match=r": adapter_config\.json: [^\n]+$"):
            load(tiny_copy)

    @pytest.mark.parametrize(
        "change", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}, {"r": 16}]
    )
    def test_other_kinds_of_adapter(self, tiny_copy, change):
        edit_json(tiny_copy / "adapter_config.json", **change)
        with pytest.raises(CheckpointError, match="adapter_"):
            load(tiny_copy)

    def test_adapter_of_a_text_model(self, tiny_copy):
        text = json.loads((TINY / "config.json").read_text())["text_config"]
        (tiny_copy / "config.json").write_text(json.dumps(text))
        prefix = "language_model."
        resave(
            tiny_copy,
            lambda w: {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)},
        )
        adapter = tiny_copy / "adapter_model.safetensors"
        pairs = {k.removeprefix(prefix): v + 0 for k, v in mx.load(str(adapter)).items()}
        mx.eval(pairs)
        mx.save_safetensors(str(adapter), pairs)
        ids = mx.array([[2, 89, 460]])
        adapted = load_model(tiny_copy)
        assert isinstance(adapted, GraniteForCausalLM)
        on = adapted(ids).logits
        with use_adapter(False):
            off = adapted(ids).logits
        (tiny_copy / "adapter_config.json").unlink()
        assert mx.allclose(off, load_model(tiny_copy)(ids).logits).item()
        assert not mx.allclose(on, off).item()

    def test_peft_prefix(self, tiny_copy):
        file = tiny_copy / "adapter_model.safetensors"
        weights = {f"base_model.model.{k}": v + 0 for k, v in mx.load(str(file)).items()}
        mx.eval(weights)
        mx.save_safetensors(str(file), weights)
        assert transcript(tiny_copy) == "unlock the back gate"


class TestStoredTypes:
    """A tensor's type is checked as its shape is."""

    NAME = "language_model.model.layers.0.mlp.up_proj.weight"

    def store(self, folder, kind, change):
        """With one tensor changed, as safetensors or in a file of torch.save."""
        resave(folder, lambda weights: {**weights, self.NAME: change(weights[self.NAME])})
        if kind == "bin":
            weights = mx.load(str(folder / "model.safetensors"))
            save_pytorch_bin(folder / "pytorch_model.bin", weights)
            (folder / "model.safetensors").unlink()

    @pytest.mark.parametrize("kind", ["safetensors", "bin"])
    @pytest.mark.parametrize(
        ("dtype", "said"),
        [(mx.int8, "I8"), (mx.int64, "I64"), (mx.bool_, "BOOL"), (mx.uint8, "U8")],
    )
    def test_integers_are_no_weights(self, tiny_copy, tmp_path, kind, dtype, said):
        self.store(tiny_copy, kind, lambda value: value.astype(dtype))
        message = f"tensor {self.NAME} is stored as {said}, but weights are floating-point numbers"
        with pytest.raises(CheckpointError, match=message):
            load_model(tiny_copy)
        with pytest.raises(CheckpointError, match=message):
            convert(tiny_copy, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_nor_are_they_an_adapter(self, tiny_copy):
        file = str(tiny_copy / "adapter_model.safetensors")
        weights = {name: value.astype(mx.int32) for name, value in mx.load(file).items()}
        mx.eval(weights)
        mx.save_safetensors(file, weights)
        with pytest.raises(CheckpointError, match=r"lora_.\.weight is stored as I32"):
            load_model(tiny_copy)

    def test_counters_are_left_out(self, tiny_copy):
        counters = ("encoder.layers.0.conv.batch_norm.num_batches_tracked", "x.position_ids")
        resave(tiny_copy, lambda weights: {**weights, **{n: mx.array([1]) for n in counters}})
        assert transcript(tiny_copy) == "unlock the back gate"

    def test_weights_of_eight_bits(self, tiny_copy, tmp_path):
        """As a model of the products; converted as well."""
        path = tiny_copy / "model.safetensors"
        weights = mx.load(str(path))
        value, bare = weights[self.NAME], self.NAME.replace("up", "gate")
        scale = mx.abs(value).max(axis=1, keepdims=True) / 448
        bytes_ = {self.NAME: mx.to_fp8(value / scale), bare: mx.to_fp8(weights[bare])}
        expected = {self.NAME: mx.from_fp8(bytes_[self.NAME], mx.float32) * scale}
        expected[bare] = mx.from_fp8(bytes_[bare], mx.float32)
        store_as(
            path,
            {**weights, **bytes_, f"{self.NAME}_scale": scale},
            dict.fromkeys(bytes_, "F8_E4M3"),
        )
        stated = {"quant_method": "compressed-tensors", "format": "float-quantized"}
        edit_json(tiny_copy / "config.json", quantization_config=stated)
        (result,) = convert(tiny_copy, tmp_path / "out", dtype="float32")
        for folder in (tiny_copy, result.folder):
            found = dict(tree_flatten(load_model(folder, dtype=mx.float32).parameters()))
            for name, array in expected.items():
                assert mx.array_equal(found[name], array).item()
        assert "quantization_config" not in json.loads((result.folder / "config.json").read_text())

    def test_double_precision(self, tiny_copy):
        path = tiny_copy / "model.safetensors"
        weights = mx.load(str(path))
        store_as(path, weights, {self.NAME: "F64"})
        assert transcript(tiny_copy) == "unlock the back gate"

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_no_number(self, tiny_copy, tmp_path, value):
        def spoil(array):
            array[3, 5] = value
            return array

        self.store(tiny_copy, "safetensors", spoil)
        message = f"tensor {self.NAME} has values that are NaN or infinite in float32"
        with pytest.raises(CheckpointError, match=message):
            load_model(tiny_copy)
        for options in ({}, {"quantize": True}):
            with pytest.raises(CheckpointError, match="has values that are NaN or infinite"):
                convert(tiny_copy, tmp_path / "out", **options)
            assert not (tmp_path / "out").exists()

    def test_numbers_too_large_for_their_sum(self):
        check_finite([("a", mx.full((4,), 3e38)), ("b", mx.array([1, 2]))], TINY)
        with pytest.raises(CheckpointError, match=r"tensor b has values .* in float16"):
            check_finite([("a", mx.ones(4)), ("b", mx.array([7e4]).astype(mx.float16))], TINY)


def test_layers_are_not_built_without_tensors(tiny_copy, monkeypatch):
    config = json.loads((TINY / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4000
    edit_json(tiny_copy / "config.json", **config)
    monkeypatch.setattr(GraniteSpeechForConditionalGeneration, "__init__", None)
    message = r"config\.json: text_config\.num_hidden_layers is 4000, but the weights are \d+ tens"
    with pytest.raises(CheckpointError, match=message):
        load_model(tiny_copy)


def test_types_by_name():
    assert load_model(TINY, dtype="float16").dtype == mx.float16
    for dtype in ("float8", 16, mx.int32):
        with pytest.raises(InputError, match=r"dtype is .*, but must be one of auto, float32"):
            load_model(TINY, dtype=dtype)
