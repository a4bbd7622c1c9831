"""Which module gets how many bits: recipes, predicates, groups."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import (
    TINY,
    TINY_S2T,
    random_decoder,
    speech_inputs,
)
from mlx.utils import tree_flatten

from mlx_speech import InputError, load
from mlx_speech.checkpoint.quantization import (
    RECIPES,
    fitting_group,
    resolve_quantization,
)
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
