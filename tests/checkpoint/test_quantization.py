"""Quantized checkpoints of several makers, loaded."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import (
    DATA,
    TINY,
    TINY_S2T,
    edit_json,
    find_recording,
    random_decoder,
    speech_inputs,
)
from mlx.utils import tree_flatten

from mlx_speech import CheckpointError, load, transcribe
from mlx_speech.checkpoint.quantization import (
    MODES,
    config_entries,
    dequantize,
    quantize_as_stored,
    resolve_quantization,
)
from mlx_speech.layers.lora import LoRALinear
from mlx_speech.loading import load_model

RECORDING = "synthetic/flite_08.flac"


def save(folder, model, config: dict, quantization=None) -> None:
    """Write a model the way that MLX's programs do, names as they are in it."""
    folder.mkdir(exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    if quantization is not None:
        config = {**config, "quantization": quantization, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))


def llama_config(model) -> dict:
    return {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}


TOKENS = mx.array([[5, 9, 33, 2, 60]])


class TestLoading:
    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize(
        ("mode", "bits", "group_size"),
        [("affine", bits, 32) for bits in MODES["affine"][1]]
        + [("affine", 4, 64), ("affine", 8, 128), ("mxfp4", 4, 32), ("mxfp8", 8, 32)]
        + [("nvfp4", 4, 16)],
    )
    def test_as_mlx_quantizes(self, tmp_path, mode, bits, group_size, tied):
        """Whatever the bits, they are found in the tensors, and the logits are the same."""
        model = random_decoder(hidden_size=128, intermediate_size=128, tie_word_embeddings=tied)
        nn.quantize(model, group_size, bits, mode=mode)
        settings = {"group_size": group_size, "bits": bits, "mode": mode}
        save(tmp_path, model, llama_config(model), settings)
        loaded = load_model(tmp_path, dtype=mx.float32)
        assert isinstance(loaded.model.embed_tokens, nn.QuantizedEmbedding)
        layer = loaded.model.layers[1].mlp.down_proj
        assert (layer.mode, layer.bits, layer.group_size) == (mode, bits, group_size)
        # before the first norm the floating-point modes give bfloat16, exactly
        assert mx.array_equal(loaded(TOKENS).logits, model(TOKENS).logits).item()

    def test_mixed_and_in_part(self, tmp_path):
        model = random_decoder(hidden_size=64, intermediate_size=48)
        settings = {
            "lm_head": {"group_size": 32, "bits": 8, "mode": "affine"},
            "model.layers.0.mlp.up_proj": {"group_size": 64, "bits": 3, "mode": "affine"},
        }
        nn.quantize(model, class_predicate=lambda path, module: settings.get(path, False))
        stated = {"group_size": 64, "bits": 4, "mode": "affine", **settings}
        save(tmp_path, model, llama_config(model), stated)
        loaded = load_model(tmp_path, dtype=mx.float32)
        assert mx.array_equal(loaded(TOKENS).logits, model(TOKENS).logits).item()
        assert type(loaded.model.layers[0].mlp.down_proj) is nn.Linear

    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
    @pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
    @pytest.mark.parametrize("kind", ["granite_speech", "speech_to_text"])
    def test_one_type_throughout(self, monkeypatch, kind, dtype, mode):
        """No stray float32 or bfloat16, whatever the mode has for its scales."""
        model = load_model(TINY if kind == "granite_speech" else TINY_S2T, dtype=dtype)
        nn.quantize(model, class_predicate=resolve_quantization(model, mode=mode))
        seen = set()
        for layer in (nn.QuantizedLinear, nn.LayerNorm, nn.RMSNorm):
            call = layer.__call__

            def spy(self, x, call=call):
                out = call(self, x)
                seen.update((x.dtype, out.dtype))
                return out

            monkeypatch.setattr(layer, "__call__", spy)
        if kind == "granite_speech":
            logits = model(mx.array([[2, 89]])).logits
            features = model.get_audio_features(mx.random.normal((1, 20, 160))).pooler_output
            assert features.dtype == dtype
        else:
            logits = model(mx.random.normal((1, 40, 80)), decoder_input_ids=mx.array([[2]])).logits
        assert logits.dtype == dtype
        assert seen == {dtype}

    def test_adapter_over_quantized_layers(self, tmp_path):
        """It stays as it is, and does what it did over the dequantized weights."""
        model, processor = load(TINY, dtype=mx.float32)
        nn.quantize(model, class_predicate=resolve_quantization(model))
        adapted = [m for m in model.modules() if isinstance(m, LoRALinear)]
        assert adapted
        for layer in adapted:
            assert isinstance(layer.base, nn.QuantizedLinear)
            assert layer.lora_a.dtype == layer.lora_b.dtype == mx.float32
        logits = model(**speech_inputs(processor, RECORDING)).logits
        dequantize(model, mx.float32)
        assert all(type(layer.base) is nn.Linear for layer in adapted)
        plain = model(**speech_inputs(processor, RECORDING)).logits
        assert mx.allclose(logits, plain, atol=2e-3).item()

    def test_shapes_that_are_no_quantization(self, tmp_path):
        model = random_decoder(hidden_size=64, intermediate_size=64)
        nn.quantize(model, 32, 4)
        model.lm_head.scales = mx.zeros((61, 3))
        save(tmp_path, model, llama_config(model))
        message = r"lm_head: weights of \(61, 8\) and scales of \(61, 3\) are no quantization of 64"
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)

    def test_rows_that_do_not_fit(self, tmp_path):
        model = random_decoder(hidden_size=64, intermediate_size=64)
        nn.quantize(model, 32, 4)
        model.lm_head.scales = model.lm_head.scales[:40]
        save(tmp_path, model, llama_config(model))
        with pytest.raises(CheckpointError, match=r"wrong shape: lm_head.scales \(40, 2\)"):
            load_model(tmp_path)

    @pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
    def test_other_programs_quantization(self, tiny_copy, method):
        edit_json(tiny_copy / "config.json", quantization_config={"quant_method": method})
        with pytest.raises(CheckpointError, match=f"quantized with '{method}', which MLX cannot"):
            load(tiny_copy)

    def test_weights_alone_tell(self):
        """Without a word in config.json."""
        model = random_decoder(hidden_size=64, intermediate_size=64)
        expected = random_decoder(hidden_size=64, intermediate_size=64)
        nn.quantize(model, 32, 5)
        quantize_as_stored(expected, dict(tree_flatten(model.parameters())))
        assert expected.lm_head.bits == 5


class TestDequantize:
    @pytest.mark.parametrize("bits", MODES["affine"][1])
    def test_within_the_step(self, bits):
        """No value is further away than the step between two levels of its group.

        Half a step is what rounding costs; MLX moves a group's ends so that zero is a level.
        """
        model, original = (random_decoder(hidden_size=64, intermediate_size=64) for _ in "ab")
        nn.quantize(model, 32, bits)
        steps = {p: m.scales for p, m in model.named_modules() if "scales" in m}
        dequantize(model, mx.float32)
        plain = dict(original.named_modules())
        for path, module in model.named_modules():
            if path in steps:
                assert type(module) is type(plain[path])
                error = mx.abs(module.weight - plain[path].weight).reshape(*steps[path].shape, 32)
                assert (error <= mx.abs(steps[path])[..., None] * 1.001).all().item()
        assert steps.keys() >= {"lm_head", "model.embed_tokens"}

    def test_biases_stay(self):
        model = load_model(DATA / "decoders" / "jais2", dtype=mx.float32)
        bias = model.model.layers[0].self_attn.q_proj.bias
        nn.quantize(model, class_predicate=resolve_quantization(model, group_size=32))
        dequantize(model, mx.float32)
        assert mx.array_equal(model.model.layers[0].self_attn.q_proj.bias, bias).item()
        assert "bias" not in model.lm_head


def test_config_entries():
    default = {"group_size": 64, "bits": 4, "mode": "affine"}
    other = {"group_size": 32, "bits": 8, "mode": "affine"}
    settings = [("a", default), ("b", other), ("norm", None)]
    assert config_entries(settings, default) == {**default, "b": other}


class TestMlxAudio:
    """Checkpoints as mlx-audio's converter writes them for its granite_speech.

    It keeps the names of the legacy layout and the BatchNorms; its convolutions are MLX's, with
    kernels of (out, k, in); encoder and projector stay as they are, all else is quantized that has
    a multiple of 64 inputs; config.json says so at the top only, its model_type is
    granite_speech always, and every checkpoint has an index.
    """

    @pytest.fixture
    def folder(self, tiny_copy):
        weights = mx.load(str(TINY / "model.safetensors"))
        result = {}
        for name, value in weights.items():
            if name.endswith("num_batches_tracked"):
                continue
            if value.ndim == 3 and "_conv" in name:
                value = value.transpose(0, 2, 1)
            result[name] = value.astype(mx.bfloat16)
        for name in [n for n in result if n.startswith("language_model.") and "norm" not in n]:
            path = name.removesuffix(".weight")
            parts = mx.quantize(result.pop(name), group_size=64, bits=4)
            result |= dict(zip((name, f"{path}.scales", f"{path}.biases"), parts, strict=True))
        mx.save_safetensors(str(tiny_copy / "model.safetensors"), result, {"format": "mlx"})
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(result)}
        index["weight_map"] = dict.fromkeys(sorted(result), "model.safetensors")
        (tiny_copy / "model.safetensors.index.json").write_text(json.dumps(index))
        settings = {"group_size": 64, "bits": 4, "mode": "affine"}
        edit_json(tiny_copy / "config.json", quantization=settings, quantization_config=settings)
        return tiny_copy

    def test_loads(self, folder):
        model = load_model(folder, dtype=mx.bfloat16)
        assert isinstance(model.language_model.model.embed_tokens, nn.QuantizedEmbedding)
        assert type(model.projector.linear) is nn.Linear
        expected = load_model(TINY, dtype=mx.bfloat16)
        nn.quantize(expected.language_model, 64, 4)
        assert mx.array_equal(model(TOKENS).logits, expected(TOKENS).logits).item()

    def test_hears(self, folder, tiny):
        model, processor = load(folder, dtype=mx.float32)
        features = speech_inputs(processor, RECORDING)["input_features"]
        expected = tiny[0].get_audio_features(features).pooler_output
        found = model.get_audio_features(features).pooler_output
        # it has the statistics of the BatchNorms in bfloat16
        assert mx.allclose(found, expected, atol=2e-2).item()
        assert transcribe(find_recording(RECORDING), (model, processor)).text == (
            "unlock the back gate"
        )

    def test_plus_under_the_name_of_the_others(self, folder):
        """It is told by the layers that its encoder exports."""
        config = json.loads((folder / "config.json").read_text())
        encoder = config["encoder_config"] | {"cat_hidden_layers": [3]}
        encoder["model_type"] = "granite_speech_plus_encoder"
        projector = config["projector_config"] | {"encoder_hidden_size": 256}
        edit_json(folder / "config.json", encoder_config=encoder, projector_config=projector)
        file = folder / "model.safetensors"
        weights = {name: value + 0 for name, value in mx.load(str(file)).items()}
        for name, value in weights.items():
            if ".crossattention.attention.key.weight" in name or name.endswith(
                ".crossattention.attention.value.weight"
            ):
                weights[name] = mx.concatenate([value, value], axis=1)
        mx.eval(weights)
        mx.save_safetensors(str(file), weights)
        model, processor = load(folder)
        assert "Plus" in processor.prompts.title
        audio = model.get_audio_features(mx.zeros((1, 20, 160))).pooler_output
        assert audio.shape == (1, 6, 128)
