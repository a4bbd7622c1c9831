"""Recipes: which module gets how many bits. Loading: quantized checkpoints of several makers."""

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

from mlx_speech import CheckpointError, InputError, load, transcribe
from mlx_speech.checkpoint.quantization import (
    MODES,
    RECIPES,
    config_entries,
    dequantize,
    fitting_group,
    quantize_as_stored,
    resolve_quantization,
)
from mlx_speech.layers.lora import LoRALinear
from mlx_speech.loading import load_model

RECORDING = "synthetic/flite_08.flac"


def bits_of(model, quantization) -> dict[str, int | None]:
    """Bits by module, None for those that stay."""
    found = {}
    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        answer = quantization(path, module)
        found[path] = answer["bits"] if answer else None
    return found


def made_of(**shapes: tuple[int, int]) -> nn.Module:
    """A module of linear layers, by their paths."""
    model = nn.Module()
    for path, (outputs, inputs) in shapes.items():
        *places, name = path.split(".")
        module = model
        for place in places:
            if place not in module:
                module[place] = nn.Module()
            module = module[place]
        module[name] = nn.Linear(inputs, outputs)
    return model


@pytest.fixture(scope="module")
def speech_model():
    return load_model(TINY)


class TestRecipes:
    def test_four_bits_of_a_speech_model_are_for_its_decoder(self, speech_model):
        quantization = resolve_quantization(speech_model)
        assert quantization.name == "speech_4bit"
        found = bits_of(speech_model, quantization)
        for path, bits in found.items():
            if path.startswith("language_model."):
                assert bits == (None if "norm" in path else 4)
        # the convolutions of width 1 included
        for path in ("conv.up_conv", "conv.down_conv", "attn.to_kv", "ff2.down_proj"):
            assert found[f"encoder.layers.5.{path}"] == 8
        assert found["encoder.input_linear"] == 8
        assert found["projector.linear"] == 8
        assert found["projector.qformer.encoder.layer.1.crossattention.attention.key"] == 8

    @pytest.mark.parametrize("name", RECIPES)
    def test_what_stays(self, speech_model, name):
        found = bits_of(speech_model, resolve_quantization(speech_model, recipe=name))
        for end in ("attn.rel_pos_emb", "conv.depth_conv", "conv.norm", "post_norm"):
            assert found[f"encoder.layers.0.{end}"] is None
        assert found["encoder.out"] is found["encoder.out_mid"] is None
        assert found["projector.qformer.layernorm"] is None
        assert found["language_model.model.norm"] is None
        # nothing else does
        linear = [p for p, m in speech_model.named_modules() if isinstance(m, nn.Linear)]
        linear = [p.removesuffix(".base") for p in linear]
        left = {p for p in linear if found.get(p, found.get(f"{p}.base")) is None}
        assert left == {"encoder.out", "encoder.out_mid"}

    def test_parts_of_each_recipe(self, speech_model):
        for name, recipe in RECIPES.items():
            found = bits_of(speech_model, resolve_quantization(speech_model, recipe=name))
            assert found["encoder.layers.0.ff1.up_proj"] == recipe.encoder
            assert found["projector.linear"] == recipe.projector
            for path in ("model.layers.0.self_attn.o_proj", "model.embed_tokens"):
                assert found[f"language_model.{path}"] == recipe.decoder
            for path in ("self_attn.k_proj", "mlp.down_proj"):
                assert found[f"language_model.model.layers.3.{path}"] == recipe.sensitive

    def test_text_models(self):
        model = random_decoder()
        quantization = resolve_quantization(model, bits=6, group_size=32)
        assert quantization.name == "all_6bit"
        assert set(bits_of(model, quantization).values()) == {6, None}
        assert set(bits_of(model, resolve_quantization(model, group_size=32)).values()) == {4, None}

    @pytest.mark.parametrize("bits", [2, 3, 5, 6, 8])
    def test_other_bits_of_a_speech_model(self, speech_model, bits):
        found = bits_of(speech_model, resolve_quantization(speech_model, bits=bits))
        for name in ("up_proj", "down_proj"):
            assert found[f"language_model.model.layers.0.mlp.{name}"] == bits
        assert found["encoder.input_linear"] == 8

    def test_speech2text(self):
        model = load_model(TINY_S2T)
        found = bits_of(model, resolve_quantization(model, recipe="mixed_4_8"))
        assert found["model.encoder.layers.0.fc1"] == 8
        assert found["model.encoder.conv.conv_layers.0"] is None
        assert found["model.decoder.layers.0.encoder_attn.q_proj"] == 4
        assert found["model.decoder.layers.0.fc1"] == 4
        assert found["model.decoder.layers.0.fc2"] == 8
        assert found["model.decoder.layers.0.self_attn.v_proj"] == 8
        assert found["model.decoder.embed_tokens"] == 4

    def test_without_a_decoder(self):
        """All of it gets 8 bits, or those asked for: its head of tokens, too."""
        model = made_of(
            **{
                "encoder.input_linear": (64, 320),
                "encoder.layers.0.self_attn.q_proj": (64, 64),
                "encoder.layers.0.self_attn.rel_pos_emb": (1025, 64),
                "encoder.out": (16384, 64),
                "encoder.out_mid": (64, 16384),
                "ctc_head": (16384, 64),
            }
        )
        for asked, bits, name in (({}, 8, "all_8bit"), ({"bits": 4}, 4, "all_4bit")):
            quantization = resolve_quantization(model, **asked)
            assert (quantization.name, quantization.default["bits"]) == (name, bits)
            found = bits_of(model, quantization)
            assert found.pop("encoder.layers.0.self_attn.rel_pos_emb") is None
            assert set(found.values()) == {bits}
        assert resolve_quantization(model, mode="mxfp4").default["bits"] == 4
        found = bits_of(model, resolve_quantization(model, recipe="speech_4bit"))
        assert set(found.values()) == {8, None}

    def test_with_an_editor(self):
        """It has the decoder's bits, and the head that drafts for it the encoder's."""
        model = made_of(
            **{
                "encoder.layers.0.ff1.up_proj": (64, 64),
                "encoder.out": (348, 64),
                "encoder.out_mid": (64, 348),
                "encoder.out_bpe": (100352, 64),
                "projector.layer_projector": (64, 256),
                "projector.qformer.layers.0.mlp.fc2": (64, 64),
                "language_model.model.embed_tokens": (100352, 64),
                "language_model.model.layers.0.mlp.down_proj": (64, 64),
            }
        )
        quantization = resolve_quantization(model)
        assert quantization.name == "speech_4bit"
        assert list(bits_of(model, quantization).values()) == [8, None, None, 8, 8, 8, 4, 4]
        recipe = resolve_quantization(model, recipe="mixed_4_8")
        assert list(bits_of(model, recipe).values()) == [8, None, None, 8, 8, 8, 4, 8]

    def test_modes(self, speech_model):
        """A mode is for the modules whose bits it has, the others are affine."""
        quantization = resolve_quantization(speech_model, mode="mxfp4")
        modules = dict(speech_model.named_modules())
        path = "language_model.model.layers.0.mlp.up_proj"
        assert quantization(path, modules[path]) == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        assert quantization("projector.linear", modules["projector.linear"]) == {
            "group_size": 64,
            "bits": 8,
            "mode": "affine",
        }
        assert quantization.default == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        # where no decoder's bits are the mode's, config.json still says something MLX can read
        assert resolve_quantization(speech_model, mode="mxfp8", recipe="speech_4bit").default == {
            "group_size": 64,
            "bits": 4,
            "mode": "affine",
        }

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bits": 7}, "q_bits is 7, but affine has 2, 3, 4, 5, 6, 8"),
            ({"mode": "mxfp4", "bits": 8}, "q_bits is 8, but mxfp4 has 4"),
            ({"mode": "nvfp4", "group_size": 32}, "q_group_size is 32, but nvfp4 has 16"),
            ({"group_size": 48}, "q_group_size is 48, but affine has 32, 64, 128"),
            ({"mode": "gptq"}, "q_mode is 'gptq'"),
            ({"recipe": "speech_5bit"}, "must be one of speech_4bit, speech_8bit"),
            ({"recipe": "all_4bit", "bits": 8}, "leave out q_bits"),
            ({"recipe": "speech_8bit", "mode": "nvfp4"}, "nvfp4 has 4 bits, which speech_8bit"),
        ],
    )
    def test_what_contradicts_itself(self, speech_model, options, message):
        with pytest.raises(InputError, match=message):
            resolve_quantization(speech_model, **options)


class TestPredicate:
    def test_decides(self):
        model = random_decoder()
        answers = {"model.embed_tokens": False, "lm_head": {"bits": 8}}
        quantization = resolve_quantization(
            model, bits=2, group_size=32, recipe=lambda path, module: answers.get(path, True)
        )
        found = bits_of(model, quantization)
        assert found["model.embed_tokens"] is None
        assert found["lm_head"] == 8
        assert found["model.layers.0.self_attn.q_proj"] == 2
        assert quantization.name == "custom"

    @pytest.mark.parametrize("answer", [None, 4, {"bits": 7}, {"mode": "x"}, {"rank": 4}])
    def test_answers_that_make_no_sense(self, answer):
        model = random_decoder()
        quantization = resolve_quantization(model, recipe=lambda path, module: answer)
        with pytest.raises(InputError, match="lm_head"):
            quantization("lm_head", model.lm_head)

    def test_may_quantize_what_recipes_leave_alone(self, tmp_path):
        """The table of positions is read through its module, quantized or not."""
        model, processor = load(TINY, dtype=mx.float32)
        inputs = speech_inputs(processor, RECORDING)
        expected = model.encoder(inputs["input_features"]).last_hidden_state
        nn.quantize(
            model.encoder,
            class_predicate=lambda path, module: (
                path.endswith("rel_pos_emb") and {"bits": 8, "group_size": 32, "mode": "affine"}
            ),
        )
        found = model.encoder(inputs["input_features"]).last_hidden_state
        difference = mx.abs(found - expected).max().item()
        assert 0 < difference < 0.05


class TestGroups:
    @pytest.mark.parametrize(
        ("inputs", "asked", "mode", "expected"),
        [
            (1024, 64, "affine", 64),
            (1024, 128, "affine", 128),
            (160, 64, "affine", 32),  # Granite Speech's features
            (192, 128, "affine", 64),
            (348, 64, "affine", None),  # its CTC head
            (48, 32, "affine", None),
            (48, 16, "nvfp4", 16),
            (48, 32, "mxfp4", None),
        ],
    )
    def test_fitting(self, inputs, asked, mode, expected):
        assert fitting_group(inputs, asked, mode) == expected

    def test_no_layer_breaks_it(self):
        model = random_decoder(hidden_size=24, intermediate_size=100)
        nn.quantize(model, class_predicate=resolve_quantization(model))
        assert not any(isinstance(m, nn.QuantizedLinear) for m in model.modules())


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
