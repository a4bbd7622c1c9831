"""Configurations of Granite Speech: what its parts say, and what contradicts itself."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from conftest import TINY, edit_json, speech_inputs, transcript

from mlx_speech import (
    CheckpointError,
    GraniteForCausalLM,
    GraniteSpeechConfig,
    InputError,
    load,
)
from mlx_speech.loading import ARCHITECTURES
from mlx_speech.models.granite_speech.model import GraniteSpeechForConditionalGeneration


class TestConfig:
    def test_unsupported_model_type_lists_the_supported(self, tiny_copy):
        edit_json(tiny_copy / "config.json", model_type="whisper")
        with pytest.raises(CheckpointError) as raised:
            load(tiny_copy)
        assert "'whisper' is not supported" in str(raised.value)
        assert all(name in str(raised.value) for name in ARCHITECTURES)

    def test_unknown_fields_are_kept(self):
        data = json.loads((TINY / "config.json").read_text()) | {"novelty": [1]}
        data["encoder_config"]["inner_novelty"] = 2
        config = GraniteSpeechConfig.from_dict(data)
        again = config.to_dict()
        assert again["novelty"] == [1]
        assert again["encoder_config"]["inner_novelty"] == 2
        assert GraniteSpeechConfig.from_dict(again) == config

    def test_documented_defaults(self):
        config = GraniteSpeechConfig()
        encoder = config.encoder_config
        assert (encoder.num_layers, encoder.hidden_dim, encoder.output_dim) == (10, 1024, 42)
        assert (encoder.context_size, encoder.max_pos_emb, encoder.dim_head) == (200, 512, 128)
        assert (config.window_size, config.downsample_rate) == (15, 5)
        assert config.audio_token_id == config.audio_token_index == 49155
        assert encoder.hidden_size == encoder.hidden_dim

    def test_defaults_do_not_fit(self):
        """The projector's encoder_hidden_size is 1408, as documented, and the encoder's is 1024:
        it can be made, as in the documentation's example, but not run."""
        model = GraniteSpeechForConditionalGeneration(GraniteSpeechConfig())
        with pytest.raises(InputError, match="encoder_hidden_size is 1408, but must be as"):
            model.projector(mx.zeros((1, 15, 1024)))

    @pytest.mark.parametrize(
        ("part", "change", "message"),
        [
            ("encoder_config", {"context_size": 500}, "context_size is 500"),
            ("encoder_config", {"cat_hidden_layers": [9]}, r"cat_hidden_layers is \[9\]"),
            ("encoder_config", {"cat_hidden_layers": [1]}, "encoder's output size 256"),
            ("projector_config", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
            ("projector_config", {"model_type": "mlp"}, "model_type 'mlp' where 'blip_2_qformer'"),
            ("text_config", {"num_key_value_heads": 3}, "num_key_value_heads, 3"),
            ("text_config", {"rope_parameters": {"rope_type": "spiral"}}, "rope_type 'spiral'"),
        ],
    )
    def test_contradictions(self, tiny_copy, part, change, message):
        data = json.loads((TINY / "config.json").read_text())
        edit_json(tiny_copy / "config.json", **{part: {**data[part], **change}})
        with pytest.raises(CheckpointError, match=message):
            load(tiny_copy)

    def test_wrong_class(self):
        with pytest.raises(CheckpointError, match="not a GraniteForCausalLM"):
            GraniteForCausalLM.from_pretrained(TINY)

    def test_from_pretrained(self):
        model = GraniteSpeechForConditionalGeneration.from_pretrained(TINY, dtype=mx.bfloat16)
        assert model.dtype == mx.bfloat16
        assert GraniteSpeechConfig.from_pretrained(TINY).encoder_config.num_layers == 6

    def test_several_eos_ids_of_generation_config(self, tiny_copy):
        edit_json(tiny_copy / "generation_config.json", eos_token_id=[0, 302])
        model, processor = load(tiny_copy, dtype=mx.float32)
        inputs = speech_inputs(processor, "synthetic/espeak_00.flac")
        output = model.generate(**inputs, max_new_tokens=30)
        assert output[0, inputs["input_ids"].shape[1] :].tolist() == [73, 302]

    def test_bad_generation_config(self, tiny_copy):
        edit_json(tiny_copy / "generation_config.json", num_beams="x")
        with pytest.raises(
            CheckpointError, match=r"generation_config.json: num_beams is 'x'"
        ) as caught:
            load(tiny_copy)
        assert "--" not in caught.value.spelled(lambda name: f"--{name}")

    def test_eos_without_generation_config(self, tiny_copy):
        (tiny_copy / "generation_config.json").unlink()
        assert transcript(tiny_copy) == "unlock the back gate"
