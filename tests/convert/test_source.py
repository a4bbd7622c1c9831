"""What is converted: a quantized source, and an adapter that stays or is fused."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import DECODERS, TINY, find_recording, speech_inputs
from conversions import logits, same, tensors

from convert import convert
from mlx_speech import CheckpointError, InputError, load, transcribe
from mlx_speech.layers.lora import LoRALinear
from mlx_speech.loading import load_model

RECORDING = "synthetic/flite_08.flac"


class TestQuantizedSource:
    def test_is_refused(self, quantized, tmp_path):
        with pytest.raises(CheckpointError, match="already quantized, to 8 bits for the most part"):
            convert(quantized[1].folder, tmp_path / "out", quantize=True)
        assert not list(tmp_path.iterdir())

    def test_is_copied_as_it_is(self, quantized, tmp_path):
        (result,) = convert(quantized[0].folder, tmp_path / "out")
        assert same(tensors(result.folder), tensors(quantized[0].folder))
        stated, expected = (
            json.loads((folder / "config.json").read_text())["quantization"]
            for folder in (result.folder, quantized[0].folder)
        )
        model = load_model(result.folder)
        for path, module in model.named_modules():
            if "scales" in module:
                path = path.removesuffix(".base")
                assert stated.get(path, stated)["bits"] == expected.get(path, expected)["bits"]

    @pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4"])
    def test_dequantize(self, tmp_path, mode):
        options = {
            "quantize": True,
            "q_mode": mode,
            "q_group_size": 32 if mode == "affine" else None,
        }
        (small,) = convert(DECODERS / "llama", tmp_path / "small", **options)
        (result,) = convert(small.folder, tmp_path / "out", dequantize=True)
        config = json.loads((result.folder / "config.json").read_text())
        assert not {"quantization", "quantization_config"} & config.keys()
        found, original = (
            tensors(result.folder, "pt"),
            mx.load(str(DECODERS / "llama/model.safetensors")),
        )
        assert found.keys() == original.keys()
        assert {v.dtype for v in found.values()} == {mx.float32}
        packed = tensors(small.folder)
        for name, value in found.items():
            scales = packed.get(f"{name.removesuffix('.weight')}.scales")
            if scales is None:
                assert mx.array_equal(value, original[name]).item()
            elif mode == "affine":
                error = mx.abs(value - original[name]).reshape(*scales.shape, -1)
                assert (error <= mx.abs(scales)[..., None] * 1.001).all().item()
        model = load_model(result.folder)
        assert mx.allclose(logits(model), logits(load_model(small.folder)), atol=1e-4).item()

    def test_quantize_anew(self, quantized, tmp_path):
        (result,) = convert(
            quantized[1].folder, tmp_path / "out", quantize=True, dequantize=True, q_bits=4
        )
        assert result.bits == 4
        model = load_model(result.folder)
        assert model.language_model.model.embed_tokens.bits == 4
        assert transcribe(find_recording(RECORDING), load(result.folder)).text == (
            "unlock the back gate"
        )

    def test_nothing_to_dequantize(self, tmp_path):
        with pytest.raises(CheckpointError, match="not quantized; leave out dequantize"):
            convert(TINY, tmp_path / "out", dequantize=True)


class TestAdapter:
    def test_stays_separate(self, quantized):
        model = load_model(quantized[0].folder)
        adapted = [m for m in model.modules() if isinstance(m, LoRALinear)]
        assert len(adapted) == 8
        assert all(isinstance(m.base, nn.QuantizedLinear) for m in adapted)

    def test_fused_before_quantizing(self, tmp_path):
        (result,) = convert(TINY, tmp_path / "out", quantize=True, fuse_adapter=True)
        assert result.fused_adapter["r"] == 32
        held = {path.name for path in result.folder.iterdir()}
        assert not held & {"adapter_config.json", "adapter_model.safetensors"}
        config = json.loads((result.folder / "config.json").read_text())
        assert config["has_lora_adapter"] is False
        assert config["fused_adapter"] == result.fused_adapter
        model, processor = load(result.folder)
        assert transcribe(find_recording(RECORDING), (model, processor)).text == (
            "unlock the back gate"
        )
        original = load_model(TINY, dtype=mx.float32)
        written = tensors(result.folder)
        for path, layer in original.named_modules():
            if isinstance(layer, LoRALinear):
                delta = layer.scale * layer.lora_b @ layer.lora_a
                weight = (layer.base.weight + delta).astype(mx.bfloat16)
                expected = mx.quantize(weight, 64, 4)
                for name, part in zip(("weight", "scales", "biases"), expected, strict=True):
                    assert mx.array_equal(written[f"{path}.{name}"], part).item()

    def test_fused_is_the_model_with_its_adapter_on(self, tmp_path):
        (result,) = convert(TINY, tmp_path / "out", fuse_adapter=True, dtype="float32")
        found, (original, processor) = load_model(result.folder), load(TINY)
        inputs = speech_inputs(processor, RECORDING)
        expected = original(**inputs).logits
        assert mx.abs(found(**inputs).logits - expected).max().item() < 0.01
        # and so it is for text, where the original has it off
        text = mx.array([[2, 89, 40, 12]])
        difference = mx.abs(found(text).logits - original(text).logits).max().item()
        assert difference > 0.1

    def test_nothing_to_fuse(self, tmp_path):
        with pytest.raises(InputError, match="no adapter to fuse"):
            convert(DECODERS / "llama", tmp_path / "out", fuse_adapter=True)

    def test_never_into_quantized_weights(self, quantized, tmp_path):
        with pytest.raises(CheckpointError, match="an adapter vanishes in quantized weights"):
            convert(quantized[0].folder, tmp_path / "out", fuse_adapter=True)
        (result,) = convert(
            quantized[1].folder, tmp_path / "out", fuse_adapter=True, dequantize=True
        )
        assert transcribe(find_recording(RECORDING), load(result.folder)).text == (
            "unlock the back gate"
        )

    def test_a_broken_adapter_is_found(self, tiny_copy, tmp_path):
        (tiny_copy / "adapter_model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"adapter_model.safetensors is missing"):
            convert(tiny_copy, tmp_path / "out", quantize=True)
        (tiny_copy / "adapter_config.json").unlink()
        with pytest.raises(CheckpointError, match="needs its LoRA adapter"):
            convert(tiny_copy, tmp_path / "out", quantize=True)
