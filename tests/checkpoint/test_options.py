"""What `from_pretrained` is told, as transformers' examples tell it."""

from __future__ import annotations

import shutil
import warnings
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import DECODERS, TINY, edit_json, resave
from conversions import logits

from mlx_speech import (
    AutoTokenizer,
    CheckpointError,
    GraniteConfig,
    InputError,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    UnsupportedOptionError,
    load,
)
from mlx_speech.loading import load_model

LLAMA = DECODERS / "llama"


GROUPS = {"group_size": 128}


class TorchType(SimpleNamespace):
    """Prints like a type of torch."""

    def __str__(self):
        return f"torch.{self.name}"


class TestPlaces:
    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [
            ("auto", mx.bfloat16),
            (None, mx.float32),
            ("float16", mx.float16),
            (mx.bfloat16, mx.bfloat16),
            (TorchType(name="float16"), mx.float16),
            ("torch.bfloat16", mx.bfloat16),
        ],
    )
    def test_types(self, dtype, expected):
        for name in ("dtype", "torch_dtype"):
            assert load_model(TINY, **{name: dtype}).dtype == expected
        assert load(TINY, dtype=dtype)[0].dtype == expected

    @pytest.mark.parametrize("dtype", ["half", 16, mx.int32, {"": "float16"}])
    def test_no_types(self, dtype):
        with pytest.raises(InputError, match=r"dtype is .*, but must be one of auto, float32"):
            load(LLAMA, dtype=dtype)

    def test_what_asks_for_nothing(self):
        """Defaults of transformers, given all the same; `main` is that of a revision."""
        options = {"subfolder": "", "variant": None, "output_loading_info": False, "proxies": None}
        options |= {"revision": "main", "offload_folder": "offload", "tp_plan": None}
        assert AutoTokenizer.from_pretrained(TINY, **options)
        assert LlamaConfig.from_pretrained(LLAMA, **options)
        assert LlamaForCausalLM.from_pretrained(LLAMA, **options)
        for name, value in {"subfolder": "part", "variant": "fp16"}.items():
            with pytest.raises(UnsupportedOptionError, match=f"takes no {name}=.{value}. here"):
                load_model(LLAMA, **{name: value})

    @pytest.mark.parametrize("place", ["auto", "cpu", "mps", "cuda", "cuda:0", 0, mx.cpu, None])
    def test_devices(self, place):
        assert load_model(LLAMA, device_map=place, attn_implementation="eager")
        model = load_model(LLAMA)
        assert model.to(place) is model
        assert model.dtype == mx.float32
        assert model.to(place, "float16").dtype == mx.float16
        assert model.to(device=place, dtype=TorchType(name="bfloat16")).dtype == mx.bfloat16
        assert model.device == mx.default_device()

    def test_parts_on_devices(self):
        with pytest.raises(UnsupportedOptionError, match=r"device_map .* MLX has one memory"):
            load_model(LLAMA, device_map={"model": 0, "lm_head": "cpu"})

    def test_defaults_of_transformers(self):
        """What asks for nothing is taken, by models and by configurations."""
        nothing = {"variant": None, "subfolder": "", "output_loading_info": False, "tp_plan": None}
        assert load_model(LLAMA, **nothing, revision="main", ignore_mismatched_sizes=None)
        assert LlamaConfig.from_pretrained(LLAMA, **nothing, revision="main")
        with pytest.raises(UnsupportedOptionError, match=r"no variant='fp16' here; leave it out"):
            load_model(LLAMA, variant="fp16")
        with pytest.raises(UnsupportedOptionError, match=r'say quantization_config=\{"bits": 4\}'):
            load_model(LLAMA, load_in_4bit=True)
        with pytest.raises(InputError, match="ignore_mismatched_sizes is 'yes', but must be true"):
            load_model(LLAMA, ignore_mismatched_sizes="yes")

    def test_other_attention(self):
        with pytest.raises(UnsupportedOptionError, match="'flash_attention_2' is not for MLX"):
            load_model(LLAMA, attn_implementation="flash_attention_2")

    @pytest.mark.parametrize("value", ["nonsense", True, mx.int32, {}])
    def test_casts_to_nothing(self, value):
        with pytest.raises(InputError, match="to takes a floating type or a device, but not"):
            load_model(LLAMA).to(value)


class TestConfigurations:
    def test_fields(self):
        model = LlamaForCausalLM.from_pretrained(LLAMA, use_cache=False, rms_norm_eps=0.5)
        assert (model.config.use_cache, model.config.rms_norm_eps) == (False, 0.5)
        plain = LlamaForCausalLM.from_pretrained(LLAMA)
        assert not mx.allclose(logits(model), logits(plain), atol=1e-3).item()

    def test_fields_of_parts(self):
        text = load_model(TINY, text_config={"rms_norm_eps": 0.5}).config.text_config
        assert text.rms_norm_eps == 0.5
        assert text.hidden_size == load_model(TINY).config.text_config.hidden_size

    def test_no_field(self):
        with pytest.raises(InputError, match="novelty is no option of from_pretrained, and no"):
            LlamaForCausalLM.from_pretrained(LLAMA, novelty=1)
        with pytest.raises(CheckpointError, match="rms_norm_eps is -1"):
            LlamaForCausalLM.from_pretrained(LLAMA, rms_norm_eps=-1)

    def test_what_the_file_holds_beyond(self, tmp_path):
        folder = shutil.copytree(LLAMA, tmp_path / "model")
        edit_json(folder / "config.json", novelty=1)
        assert load_model(folder, novelty=2).config.to_dict()["novelty"] == 2

    @pytest.mark.parametrize("kind", ["object", "folder"])
    def test_a_configuration(self, tmp_path, kind):
        config = LlamaConfig.from_pretrained(LLAMA)
        config.rms_norm_eps = 0.5
        given = config
        if kind == "folder":
            given = shutil.copytree(LLAMA, tmp_path / "model")
            edit_json(given / "config.json", rms_norm_eps=0.5)
            (given / "model.safetensors").unlink()
        model = LlamaForCausalLM.from_pretrained(LLAMA, config=given)
        assert model.config.rms_norm_eps == 0.5
        assert model.config is not config

    def test_no_configuration(self):
        with pytest.raises(CheckpointError, match="named by text or a path, but a dict was given"):
            LlamaForCausalLM.from_pretrained(LLAMA, config={"hidden_size": 32})
        other = GraniteConfig.from_pretrained(DECODERS / "granite")
        with pytest.raises(CheckpointError, match="model_type 'granite' where 'llama'"):
            LlamaForCausalLM.from_pretrained(LLAMA, config=other)


class TestQuantization:
    @pytest.mark.parametrize(
        ("requested", "expected"),
        [
            ({"bits": 4}, (4, 32, "affine")),  # of 64, which do not divide a layer of 32 inputs
            ({"bits": 3, "group_size": 32, "mode": "affine"}, (3, 32, "affine")),
            ({"bits": 8, "mode": "mxfp8"}, (8, 32, "mxfp8")),
            (SimpleNamespace(_load_in_8bit=True, _load_in_4bit=False), (8, 32, "affine")),
            ({"quant_method": "bitsandbytes", "load_in_4bit": True}, (4, 32, "affine")),
            (
                SimpleNamespace(quant_type="int4_weight_only", quant_type_kwargs=GROUPS),
                (4, 32, "affine"),
            ),
            (
                SimpleNamespace(quant_type=type("Int8WeightOnlyConfig", (), {})()),
                (8, 32, "affine"),
            ),
        ],
    )
    def test_requests(self, requested, expected):
        model = load_model(LLAMA, quantization_config=requested)
        layer = model.model.layers[0].self_attn.q_proj
        assert (layer.bits, layer.group_size, layer.mode) == expected
        mx.eval(logits(model))

    def test_is_that_of_convert(self, tmp_path):
        from convert import convert

        convert(TINY, tmp_path / "q", quantize=True, q_bits=4, dtype="float32")
        model = load_model(TINY, quantization_config={"bits": 4}, dtype="float32")
        assert mx.array_equal(logits(model), logits(load_model(tmp_path / "q"))).item()
        assert model.encoder.layers[0].attn.to_q.bits == 8

    @pytest.mark.parametrize("name", ["modules_to_not_convert", "llm_int8_skip_modules"])
    def test_what_is_left_alone(self, name):
        requested = {"load_in_8bit": True, name: ["lm_head", "layers.1"]}
        model = load_model(LLAMA, quantization_config=requested)
        kinds = (type(model.lm_head), *(type(x.self_attn.q_proj) for x in model.model.layers))
        assert kinds == (nn.Linear, nn.QuantizedLinear, nn.Linear)

    @pytest.mark.parametrize(
        "requested",
        [4, "4bit", {}, {"bits": 4, "quant_method": "gptq"}, SimpleNamespace(quant_type="float8")],
    )
    def test_what_mlx_has_not(self, requested):
        with pytest.raises(InputError, match=r"quantization_config .* asks for no quantization"):
            load_model(LLAMA, quantization_config=requested)

    def test_settings_that_do_not_exist(self):
        with pytest.raises(InputError, match="bits is 7"):
            load_model(LLAMA, quantization_config={"bits": 7})
        with pytest.raises(InputError, match="zeros is no setting"):
            load_model(LLAMA, quantization_config={"bits": 4, "zeros": 1})

    def test_twice(self, tmp_path):
        load_model(LLAMA, quantization_config={"bits": 4}).save_pretrained(tmp_path)
        with pytest.raises(InputError, match="for a checkpoint that is not quantized already"):
            load_model(tmp_path, quantization_config={"bits": 4})


class TestHeads:
    def test_a_new_one(self, tmp_path):
        """With as many labels as asked for; what is saved then has it."""
        with pytest.warns(UserWarning, match=r"new, and random, .* score\.weight; train"):
            model = LlamaForSequenceClassification.from_pretrained(LLAMA, num_labels=3)
        assert model.score.weight.shape == (3, 32)
        assert mx.std(model.score.weight).item() == pytest.approx(0.02, rel=0.3)
        mine, theirs = (m.model.layers[1].mlp.up_proj.weight for m in (model, load_model(LLAMA)))
        assert mx.array_equal(mine, theirs).item()
        model.save_pretrained(tmp_path)
        with warnings.catch_warnings(action="error"):
            again = load_model(tmp_path)
        assert mx.array_equal(again.score.weight, model.score.weight).item()

    def test_none(self):
        with warnings.catch_warnings(action="error"):
            assert LlamaModel.from_pretrained(LLAMA)

    def test_other_labels(self, tmp_path):
        LlamaForSequenceClassification(LlamaConfig.from_pretrained(LLAMA)).save_pretrained(tmp_path)
        load = LlamaForSequenceClassification.from_pretrained
        with pytest.raises(CheckpointError, match=r"score.weight \(2, 32\).*; ignore_mism"):
            load(tmp_path, num_labels=4)
        with pytest.warns(UserWarning, match=r"are score\.weight"):
            model = load(tmp_path, num_labels=4, ignore_mismatched_sizes=True)
        assert model.score.weight.shape == (4, 32)

    def test_a_damaged_checkpoint_gets_none(self, tmp_path):
        """It says that it has one."""
        folder = shutil.copytree(LLAMA, tmp_path / "model")
        resave(folder, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"})
        with pytest.raises(CheckpointError, match=r"1 tensors missing: lm_head\.weight"):
            load_model(folder)
