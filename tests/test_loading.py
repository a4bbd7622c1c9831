"""Loading: the layouts that real repositories have, and what is wrong with broken ones."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from conftest import TINY, edit_json, find_recording, resave, transcript
from pytorch_files import save_pytorch_bin

from mlx_speech import (
    CheckpointError,
    GraniteSpeechConfig,
    load,
    loading,
    transcribe,
)
from mlx_speech.checkpoint.weights import checkpoint_dtype, read_weights
from mlx_speech.loading import ARCHITECTURES, architecture, load_model
from mlx_speech.models.granite_speech.model import GraniteSpeechForConditionalGeneration

RECORDING = "synthetic/flite_08.flac"


def untie(weights: dict) -> dict:
    """A head of its own, different from the embeddings."""
    head = weights["language_model.model.embed_tokens.weight"][::-1]
    return {**weights, "language_model.lm_head.weight": head}


class TestTenThings:
    """The ten things most likely to break a first load (those of Speech2Text and Jais2 aside)."""

    @pytest.mark.parametrize("layout", ["language_model", "model", "double"])
    def test_three_tensor_layouts(self, tiny_copy, layout):
        def rename(name):
            if layout == "double" and name.startswith("language_model.model."):
                return name.replace("language_model.model.", "language_model.model.model.", 1)
            if layout == "model":
                name = name.replace("language_model.model.", "language_model.", 1)
                return f"model.{name}"
            return name

        resave(tiny_copy, lambda w: {rename(k): v for k, v in w.items()})
        if layout == "model":
            adapter = tiny_copy / "adapter_model.safetensors"
            renamed = {rename(k): v + 0 for k, v in mx.load(str(adapter)).items()}
            mx.eval(renamed)
            mx.save_safetensors(str(adapter), renamed)
        assert transcript(tiny_copy) == "unlock the back gate"

    def test_other_safetensors_are_not_part_of_the_model(self, tiny_copy):
        stray = {"weight": mx.ones((4, 4)), "bias": mx.ones(4)}
        mx.save_safetensors(str(tiny_copy / "out_other.safetensors"), stray)
        assert transcript(tiny_copy) == "unlock the back gate"

    @pytest.mark.parametrize(
        ("top", "text", "tied"),
        [
            (False, False, False),
            (None, False, False),
            (False, None, False),
            (None, None, False),  # nothing said: the head is there
            (True, False, False),  # contradiction: the head is there
            (True, True, True),  # said twice, and yet the head that is there is another one
            (None, True, True),
        ],
    )
    def test_tied_or_not_with_a_head_in_the_file(self, tiny_copy, recwarn, top, text, tied):
        resave(tiny_copy, untie)
        config = json.loads((TINY / "config.json").read_text())
        inner = {**config["text_config"], "tie_word_embeddings": text}
        inner = {k: v for k, v in inner.items() if v is not None}
        edit_json(tiny_copy / "config.json", tie_word_embeddings=top, text_config=inner)
        model = load_model(tiny_copy, dtype=mx.float32)
        assert not model.config.tie_word_embeddings
        given = [str(warning.message) for warning in recwarn]
        assert any("weight differ; both are used" in text for text in given) == tied
        logits = model(mx.array([[2, 89]])).logits
        expected = load_model(TINY, dtype=mx.float32)(mx.array([[2, 89]])).logits
        assert mx.allclose(logits, expected[..., ::-1], atol=1e-4).item()

    @pytest.mark.parametrize("kept", [("lm_head", "embed_tokens"), ("lm_head",), ("embed_tokens",)])
    def test_a_tied_head_may_be_stored_too_or_alone(self, tiny_copy, kept):
        name = "language_model.model.embed_tokens.weight"

        def store(weights):
            table = weights.pop(name)
            both = {"embed_tokens": name, "lm_head": "language_model.lm_head.weight"}
            return {**weights, **{both[part]: table for part in kept}}

        resave(tiny_copy, store)
        assert transcript(tiny_copy) == "unlock the back gate"
        assert load_model(tiny_copy).config.tie_word_embeddings

    def test_tied_where_nothing_is_said_and_no_head_is_there(self, tiny_copy):
        config = json.loads((TINY / "config.json").read_text())
        del config["text_config"]["tie_word_embeddings"]
        text = config["text_config"]
        edit_json(tiny_copy / "config.json", tie_word_embeddings=None, text_config=text)
        assert transcript(tiny_copy) == "unlock the back gate"

    def test_the_adapter_that_the_config_promises_must_be_there(self, tiny_copy):
        (tiny_copy / "adapter_config.json").unlink()
        with pytest.raises(
            CheckpointError, match=r"needs its LoRA adapter.*has_lora_adapter=False"
        ):
            load(tiny_copy)

    def test_layers_under_an_adapter_may_have_the_names_of_peft(self, tiny_copy):
        adapter = mx.load(str(tiny_copy / "adapter_model.safetensors"))
        adapted = {name.partition(".lora_")[0] for name in adapter}

        def store(tensors):
            module = {name: name.rpartition(".")[0] for name in tensors}
            named = {
                f"{module[n]}.base_layer.weight" if module[n] in adapted else n: tensors[n]
                for n in tensors
            }
            return named | adapter

        resave(tiny_copy, store)
        assert transcript(tiny_copy) == "unlock the back gate"

    def test_a_new_model_is_saved_as_one_without_an_adapter(self, tmp_path):
        config = GraniteSpeechConfig.from_pretrained(TINY)
        assert config.has_lora_adapter
        GraniteSpeechForConditionalGeneration(config).save_pretrained(tmp_path)
        saved = GraniteSpeechForConditionalGeneration.from_pretrained(tmp_path)
        assert not saved.config.has_lora_adapter

    def test_without_its_adapter_it_gives_another_text(self, tiny_copy):
        (tiny_copy / "adapter_config.json").unlink()
        edit_json(tiny_copy / "config.json", has_lora_adapter=False)
        assert transcript(tiny_copy) != "unlock the back gate"

    @pytest.mark.parametrize("content", ["{}", None])
    def test_empty_or_absent_preprocessor_config(self, tiny_copy, content):
        (tiny_copy / "processor_config.json").unlink()
        if content is None:
            (tiny_copy / "preprocessor_config.json").unlink()
        else:
            (tiny_copy / "preprocessor_config.json").write_text(content)
        assert transcript(tiny_copy) == "unlock the back gate"

    def test_rope_theta_flat_or_nested(self, tiny_copy):
        config = json.loads((TINY / "config.json").read_text())
        text = config["text_config"]
        del text["rope_parameters"]
        text["rope_theta"] = 10000.0
        edit_json(tiny_copy / "config.json", text_config=text)
        assert transcript(tiny_copy) == "unlock the back gate"
        text["rope_theta"] = 100.0
        edit_json(tiny_copy / "config.json", text_config=text)
        assert transcript(tiny_copy) != "unlock the back gate"


class TestFiles:
    def test_sharded(self, tiny_copy):
        file = tiny_copy / "model.safetensors"
        weights = {k: v + 0 for k, v in mx.load(str(file)).items()}
        mx.eval(weights)
        file.unlink()
        names = sorted(weights)
        shards = {"model-00001-of-00002.safetensors": names[::2], "b.safetensors": names[1::2]}
        for shard, part in shards.items():
            mx.save_safetensors(str(tiny_copy / shard), {n: weights[n] for n in part})
        index = {"weight_map": {n: shard for shard, part in shards.items() for n in part}}
        (tiny_copy / "model.safetensors.index.json").write_text(json.dumps(index))
        assert transcript(tiny_copy) == "unlock the back gate"
        (tiny_copy / "b.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"b\.safetensors is missing"):
            load(tiny_copy)

    def test_pytorch(self, tiny_copy):
        file = tiny_copy / "model.safetensors"
        save_pytorch_bin(tiny_copy / "pytorch_model.bin", mx.load(str(file)))
        file.unlink()
        assert transcript(tiny_copy) == "unlock the back gate"

    def test_sharded_pytorch(self, tiny_copy):
        file = tiny_copy / "model.safetensors"
        weights = mx.load(str(file))
        names = sorted(weights)
        shards = {f"pytorch_model-0000{n + 1}-of-00002.bin": names[n::2] for n in (0, 1)}
        for shard, part in shards.items():
            save_pytorch_bin(tiny_copy / shard, {n: weights[n] for n in part})
        file.unlink()
        index = {"weight_map": {n: shard for shard, part in shards.items() for n in part}}
        (tiny_copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (tiny_copy / "pytorch_model.bin").write_bytes(b"not to be read")
        assert transcript(tiny_copy) == "unlock the back gate"
        (tiny_copy / "pytorch_model-00002-of-00002.bin").unlink()
        with pytest.raises(CheckpointError, match=r"pytorch_model-00002-of-00002\.bin is missing"):
            load(tiny_copy)

    def test_safetensors_win_over_pytorch(self, tiny_copy):
        for name in ("pytorch_model.bin", "pytorch_model-00001-of-00001.bin"):
            (tiny_copy / name).write_bytes(b"not to be read")
        index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
        (tiny_copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        assert transcript(tiny_copy) == "unlock the back gate"

    def test_single_file_wins_over_its_variants(self, tiny_copy):
        (tiny_copy / "model.fp16.safetensors").write_bytes(b"not to be read")
        assert transcript(tiny_copy) == "unlock the back gate"

    @pytest.mark.parametrize("dtype", [mx.float16, mx.float32])
    def test_other_stored_types(self, tiny_copy, dtype):
        resave(tiny_copy, lambda w: {k: v.astype(dtype) for k, v in w.items()})
        edit_json(tiny_copy / "config.json", dtype=None, torch_dtype=str(dtype)[9:])
        assert transcript(tiny_copy) == "unlock the back gate"

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"dtype": "float16"}, mx.float16),
            ({"torch_dtype": "float32"}, mx.float32),
            ({}, mx.bfloat16),
            ({"dtype": "auto"}, mx.bfloat16),
            ({"dtype": "int8"}, mx.bfloat16),
            ({"text_config": {"dtype": "float32"}}, mx.bfloat16),
        ],
    )
    def test_type_that_is_stated_or_else_that_of_most_weights(self, config, expected):
        weights = {
            "counter": mx.zeros(99, mx.int64),
            "a": mx.zeros(4, mx.float32),
            "b": mx.zeros(4, mx.float32),
            "c": mx.zeros(9, mx.bfloat16),
        }
        assert checkpoint_dtype(config, weights) == expected

    def test_half_precision_folds_in_float32(self):
        """bfloat16 has 8 bits: folding BatchNorm in it would cost the encoder three digits."""
        stored = read_weights(TINY, {})
        model = load_model(TINY, dtype=mx.float32)
        prefix = "encoder.layers.0.conv."
        gain, variance = (
            stored[f"{prefix}batch_norm.{n}"].astype(mx.float32) for n in ("weight", "running_var")
        )
        kernel = stored[f"{prefix}depth_conv.conv.weight"].astype(mx.float32)
        expected = kernel.swapaxes(1, 2) * (gain / mx.sqrt(variance + 1e-5))[:, None, None]
        found = model.encoder.layers[0].conv.depth_conv.weight
        assert mx.allclose(found, expected, rtol=1e-6, atol=0).item()

    def test_truncated_weights(self, tiny_copy):
        file = tiny_copy / "model.safetensors"
        file.write_bytes(file.read_bytes()[:1_000_000])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load(tiny_copy)

    def test_no_weights(self, tiny_copy):
        (tiny_copy / "model.safetensors").unlink()
        with pytest.raises(
            CheckpointError, match=r"no model\.safetensors and no pytorch_model\.bin"
        ):
            load(tiny_copy)

    def test_no_config(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no config\.json here"):
            load(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]"])
    def test_broken_config(self, tiny_copy, text):
        (tiny_copy / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json: (not readable|expected)"):
            load(tiny_copy)

    def test_broken_tokenizer(self, tiny_copy):
        (tiny_copy / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointError, match="not a readable tokenizer"):
            load(tiny_copy)


class TestDamage:
    """One line that names the file, whatever is in it."""

    def refused(self, folder, message):
        with pytest.raises(CheckpointError, match=message) as raised:
            load(folder)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": []}, r"model_type \[\] is not supported"),
            ({"text_config": []}, r"config\.json: text_config is \[\], but must be an object"),
            ({"encoder_config": 5}, "encoder_config is 5"),
            ({"encoder_config": {"num_layers": "6"}}, r"json: encoder_config.num_layers is '6'"),
            ({"encoder_config": {"num_heads": 0}}, "encoder_config.num_heads is 0, .*at least 1"),
            ({"downsample_rate": 0}, "downsample_rate is 0"),
            (
                {"downsample_rate": 4},
                "window_size is 15, but must be a multiple of downsample_rate, 4",
            ),
            ({"window_size": "15"}, "window_size is '15'"),
            ({"tie_word_embeddings": []}, "tie_word_embeddings is .*must be true or false$"),
            ({"audio_token_index": None, "audio_token_id": "4"}, "audio_token_index is '4'"),
            ({"architectures": 5}, "architectures is 5, but must be a list in which each is text"),
        ],
    )
    def test_config(self, tiny_copy, change, message):
        edit_json(tiny_copy / "config.json", **change)
        self.refused(tiny_copy, message)

    @pytest.mark.parametrize("architectures", [[], ["Novelty"], None])
    def test_architectures_that_say_nothing(self, tiny_copy, architectures):
        edit_json(tiny_copy / "config.json", architectures=architectures)
        assert type(load_model(tiny_copy)) is GraniteSpeechForConditionalGeneration

    @pytest.mark.parametrize(
        "index", [{}, {"weight_map": ["model.safetensors"]}, {"weight_map": {"a": 1}}]
    )
    def test_index(self, tiny_copy, index):
        edit_json(tiny_copy / "model.safetensors.index.json", **index)
        self.refused(tiny_copy, r"index\.json is not an index of weights")

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("depth_conv.conv.weight", lambda v: v[:, 0], r"missing: \S+0\.conv\.depth_conv\."),
            ("up_conv.weight", lambda v: mx.repeat(v, 3, axis=2), r"up_conv.weight .512, 128, 3."),
            ("batch_norm.running_var", lambda v: v[1:], "running_var .255,. for 256 channels"),
        ],
    )
    def test_convolutions(self, tiny_copy, name, change, message):
        name = f"encoder.layers.0.conv.{name}"
        resave(tiny_copy, lambda weights: {**weights, name: change(weights[name])})
        self.refused(tiny_copy, message)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"melspec_kwargs": ["x"]}, "melspec_kwargs is"),
            ({"melspec_kwargs": {"n_mels": 40}}, "n_mels is 40 for the .*, but 80 for the model"),
            ({"melspec_kwargs": {"hop_length": 0}}, "hop_length is 0"),
            (
                {"melspec_kwargs": {"n_fft": 256}},
                "win_length is 400, but must be at most n_fft",
            ),
            ({"sampling_rate": "16000"}, "sampling_rate is '16000'"),
            ({"sampling_rate": 8000}, "sampling_rate 8000 contradicts the sample_rate 16000"),
            ({"projector_window_size": 10}, "window_size is 10 for the .*, but 15 for the model"),
            ({"projector_downsample_rate": 3}, "downsample_rate is 3 for the"),
        ],
    )
    def test_features(self, tiny_copy, change, message):
        (tiny_copy / "processor_config.json").unlink()
        edit_json(tiny_copy / "preprocessor_config.json", **change)
        self.refused(tiny_copy, message)

    @pytest.mark.parametrize("template", [["x"], [{"name": "default"}], 5, {"a": 1}])
    def test_chat_template(self, tiny_copy, template):
        (tiny_copy / "chat_template.jinja").unlink()
        edit_json(tiny_copy / "tokenizer_config.json", chat_template=template)
        self.refused(tiny_copy, "chat.template")

    def test_chat_template_that_is_no_text(self, tiny_copy):
        (tiny_copy / "chat_template.jinja").write_bytes(b"\xff")
        self.refused(tiny_copy, "no readable chat template")


def test_other_sampling_rate(tiny_copy):
    """Features are made at it; times are not, so that transcription refuses it."""
    (tiny_copy / "processor_config.json").unlink()
    features = {"sampling_rate": 8000, "melspec_kwargs": {"n_fft": 512}}
    edit_json(tiny_copy / "preprocessor_config.json", **features)
    model, processor = load(tiny_copy)
    assert processor.audio_processor.melspec_kwargs["sample_rate"] == 8000
    with pytest.raises(CheckpointError, match="trained on audio of 8000 Hz"):
        transcribe(find_recording(RECORDING), (model, processor))


@pytest.mark.parametrize("layout", ["checkpoint", "ours"])
def test_sanitize_is_pure_and_idempotent(layout):
    weights = read_weights(TINY, {})
    names = set(weights)
    config = GraniteSpeechConfig.from_pretrained(TINY)
    sanitize = GraniteSpeechForConditionalGeneration.sanitize
    once = sanitize(weights, config)
    assert set(weights) == names
    if layout == "ours":
        twice = sanitize(once, config)
        assert twice.keys() == once.keys()
        assert all(twice[k] is once[k] for k in once)


def test_what_resolving_is_told(monkeypatch):
    told = []

    def resolve(name, **options):
        told.append((name, options))
        return TINY

    monkeypatch.setattr(loading, "resolve_checkpoint", resolve)
    load("owner/name", revision="v1", progress=False)
    assert told[0] == ("owner/name", {"revision": "v1", "progress": False})
    assert told[1:] == [(TINY, {})]  # the model, from what was found


def test_registry_classes_exist():
    for name in ARCHITECTURES:
        found = architecture(name)
        config = found.model_class().config_class
        assert name in (config.model_type, *config.other_types)
        assert found.processor_class.from_pretrained
