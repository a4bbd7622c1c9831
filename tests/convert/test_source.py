"""What is converted: a quantized source, and an adapter that stays or is fused."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from adapters import LORA, SAVED, adapter, fuse, terms, train
from conftest import DECODERS, TINY, TINY_S2T, find_recording, speech_inputs
from conversions import logits, same, tensors

from convert import convert
from mlx_speech import CheckpointError, InputError, load, transcribe
from mlx_speech.layers.lora import LoRALinear, SavedModule
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


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    """An adapter for the bundled model."""
    model = load_model(TINY, dtype=mx.float32)
    train(model, SAVED[:2])
    return adapter(tmp_path_factory.mktemp("adapters") / "further", model, LORA, SAVED[:2])


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

    @pytest.mark.parametrize("bits", [None, 8])
    def test_a_further_one_is_fused_over_it(self, bits, further, tmp_path):
        """Low-rank terms, and whole modules that replace those of the source."""
        options = {"fuse_adapter": True, "adapter": further, "dtype": "float32"}
        options |= {"quantize": True, "q_bits": bits} if bits else {}
        (result,) = convert(TINY, tmp_path / "out", **options)
        original = load_model(TINY, dtype=mx.float32, adapter=further)
        found, expected = load_model(result.folder), logits(original)
        error = mx.abs(logits(found) - expected).max() / mx.abs(expected).max()
        assert error.item() < (0.1 if bits else 1e-4)
        own = logits(load_model(TINY, dtype=mx.float32))
        assert (mx.abs(own - expected).max() > 0.2 * mx.abs(expected).max()).item()
        assert not any(isinstance(m, LoRALinear | SavedModule) for m in found.modules())
        stated = json.loads((result.folder / "config.json").read_text())["fused_adapter"]
        assert (stated["name"], stated["over"]["r"], stated["r"]) == ("further", 32, 4)
        assert stated["modules_to_save"] == ["model.projector", "model.encoder.out"]
        card = (result.folder / "README.md").read_text()
        assert "The adapter `further` is part of the weights, over the original's own" in card
        assert "as a whole: `model.projector`, `model.encoder.out`." in card

    def test_one_over_a_source_that_has_none(self, tmp_path):
        model, layer = load_model(DECODERS / "llama"), "model.layers.0.self_attn.q_proj"
        adapter(tmp_path / "further", model, [layer])
        options = {"fuse_adapter": True, "adapter": tmp_path / "further"}
        (result,) = convert(DECODERS / "llama", tmp_path / "out", **options)
        assert "over" not in result.fused_adapter
        fuse(model, terms(model, [layer]))
        assert mx.allclose(logits(load_model(result.folder)), logits(model), atol=1e-4).item()

    def test_a_further_one_that_is_not_to_be_fused(self, further, tmp_path):
        with pytest.raises(InputError, match="adapter goes with fuse_adapter"):
            convert(TINY, tmp_path / "out", adapter=further)
        with pytest.raises(CheckpointError, match="tensors are of no module of this model"):
            convert(TINY_S2T, tmp_path / "out", adapter=further, fuse_adapter=True)
        assert not list(tmp_path.iterdir())

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
