"""Configurations: what numbers make sense in them, and what released checkpoints have."""

from __future__ import annotations

import copy
import json

import mlx.core as mx
import pytest
from conftest import TINY, TINY_S2T

from mlx_speech import (
    CheckpointError,
    GraniteConfig,
    GraniteSpeechConfig,
    GraniteSpeechEncoderConfig,
    InputError,
    Jais2Config,
    LlamaConfig,
    Speech2TextConfig,
    UnsupportedOptionError,
)
from mlx_speech.errors import one_line


def changed(config: dict, place: str, value) -> dict:
    """A configuration with another value at a place such as `text_config.vocab_size`."""
    name, _, rest = place.partition(".")
    return {**config, name: changed(config.get(name) or {}, rest, value) if rest else value}


@pytest.mark.parametrize(
    "value", [0, -1, 10**9, 10**400, 2.5, float("nan"), float("inf"), "4", True, [4], {}]
)
@pytest.mark.parametrize(
    "place",
    [
        "text_config.vocab_size",
        "text_config.num_hidden_layers",
        "text_config.num_attention_heads",
        "text_config.num_key_value_heads",
        "text_config.head_dim",
        "text_config.rms_norm_eps",
        "text_config.logits_scaling",
        "encoder_config.num_layers",
        "encoder_config.num_heads",
        "encoder_config.context_size",
        "encoder_config.conv_kernel_size",
        "projector_config.num_attention_heads",
        "projector_config.cross_attention_frequency",
        "window_size",
        "downsample_rate",
    ],
)
def test_numbers_that_make_no_sense(place, value):
    if value == 2.5 and place == "text_config.logits_scaling":
        value = -2.5
    config = json.loads((TINY / "config.json").read_text())
    with pytest.raises(CheckpointError) as raised:
        GraniteSpeechConfig.from_dict(changed(config, place, value))
    told = one_line(f"config.json: {place} is {value!r}, but must be")
    assert str(raised.value).startswith(told)


@pytest.mark.parametrize(
    ("place", "value", "rule"),
    [
        ("d_model", 66, "a multiple of encoder_attention_heads, 4"),
        ("conv_channels", 1, "even"),
        ("conv_kernel_sizes", [5, 0], "a list in which each is an integer, at least 1"),
        ("input_channels", 0, "an integer, at least 1"),
        ("max_source_positions", -6000, "an integer, at least 1"),
        ("decoder_start_token_id", 10**6, "below vocab_size"),
        ("pad_token_id", None, "an integer, at least 0"),
        ("encoder_layers", None, "an integer"),
    ],
)
def test_of_speech_to_text(place, value, rule):
    config = json.loads((TINY_S2T / "config.json").read_text())
    with pytest.raises(CheckpointError, match=rf"json: {place} is .*, but must be {rule}"):
        Speech2TextConfig.from_dict({**config, place: value})


def test_relations_of_a_decoder():
    with pytest.raises(CheckpointError, match="hidden_size is 65, but must be a multiple"):
        LlamaConfig.from_dict({"hidden_size": 65, "num_attention_heads": 4})
    assert LlamaConfig(hidden_size=65, num_attention_heads=4, head_dim=16).head_dim == 16
    with pytest.raises(CheckpointError, match="head_dim is 7, but must be even"):
        LlamaConfig.from_dict({"head_dim": 7})
    with pytest.raises(CheckpointError, match=r"rope_parameters\.rope_theta is 0, but must be"):
        LlamaConfig.from_dict({"rope_theta": 0})


def test_a_configuration_that_is_made_by_hand_is_checked_too():
    with pytest.raises(InputError, match="hidden_size is 0, but must be an integer, at least 1"):
        GraniteConfig(hidden_size=0)


def test_integers_with_a_point_and_null_where_it_means_something():
    config = LlamaConfig.from_dict(
        {"hidden_size": 64.0, "num_attention_heads": 4, "head_dim": None, "novelty": None}
    )
    assert (config.hidden_size, config.head_dim) == (64, 16)
    assert type(config.hidden_size) is int
    assert config.novelty is None
    assert "novelty" in config.to_dict()


def test_shares():
    config = LlamaConfig(attention_dropout=None, pretraining_tp=None)
    assert (config.attention_dropout, config.pretraining_tp) == (None, None)
    for name in ("attention_dropout", "initializer_range"):
        for value in (-0.1, 1.5):
            with pytest.raises(InputError, match=f"{name} is {value}, but must be a finite number"):
                LlamaConfig(**{name: value})


def test_values_have_names():
    with pytest.raises(InputError, match="a LlamaConfig takes values by their names only"):
        LlamaConfig(32000, 4096)


class TestCommonFields:
    """What all configurations have, whatever they are of."""

    def test_labels(self):
        config = LlamaConfig()
        assert (config.num_labels, config.id2label) == (2, {0: "LABEL_0", 1: "LABEL_1"})
        assert LlamaConfig(num_labels=3).label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
        config.num_labels = 1
        assert config.id2label == {0: "LABEL_0"}
        named = LlamaConfig(id2label={"0": "no", "1": "yes"})
        assert named.id2label == {0: "no", 1: "yes"}
        named.num_labels = 2  # which it has: the names stay
        assert named.id2label == {0: "no", 1: "yes"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"id2label": {"first": "no"}}, "id2label is .*, but must be a dict whose keys are"),
            ({"num_labels": 0}, "num_labels is 0, but must be an integer, at least 1"),
            ({"problem_type": "clustering"}, "problem_type is 'clustering', but must be one of"),
            ({"dtype": 5, "use_cache": "yes"}, "use_cache is 'yes', but must be true or false"),
        ],
    )
    def test_what_makes_no_sense(self, options, message):
        with pytest.raises(InputError, match=message):
            LlamaConfig(**options)

    @pytest.mark.parametrize("dtype", ["bfloat16", mx.bfloat16, "torch.bfloat16"])
    def test_dtype(self, dtype):
        assert LlamaConfig(torch_dtype=dtype).dtype == "bfloat16"

    def test_text_config(self):
        config = LlamaConfig()
        assert config.get_text_config(decoder=True) is config

    def test_other_names(self):
        config = Speech2TextConfig(hidden_size=64)
        assert (config.d_model, config.hidden_size) == (64, 64)
        config.hidden_size = 32
        assert config.d_model == 32
        assert "hidden_size" not in config.to_dict()

    def test_further_attributes(self):
        config = LlamaConfig(novelty=[1])
        config.other = 2
        config.update({"novelty": 3})
        assert (config.novelty, config.other) == (3, 2)
        assert {"novelty": 3, "other": 2}.items() <= config.to_dict().items()
        assert LlamaConfig.from_dict(config.to_dict()) == config
        assert copy.deepcopy(config) == config
        with pytest.raises(AttributeError, match="LlamaConfig has no field 'third'"):
            _ = config.third

    @pytest.mark.parametrize("name", ["to_dict", "scales", "norm", "extra", "model_class"])
    def test_no_method_is_hidden_by_a_file(self, name):
        config = LlamaConfig.from_dict({name: 5})
        assert config.to_dict()[name] == 5
        assert config.scales.attention == 128**-0.5


class TestFiles:
    def test_saved(self, tmp_path):
        config = Jais2Config(rope_theta=5e5, id2label={0: "a", 1: "b", 2: "c"}, novelty=1)
        assert config.save_pretrained(tmp_path) == [str(tmp_path / "config.json")]
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["id2label"] == {"0": "a", "1": "b", "2": "c"}
        assert written.keys().isdisjoint({"output_attentions", "problem_type", "name_or_path"})
        read = Jais2Config.from_pretrained(tmp_path)
        assert read == config
        assert read.name_or_path == read.to_dict()["_name_or_path"] == str(tmp_path)

    def test_every_kind_comes_back_equal(self, tmp_path):
        for kind in (LlamaConfig, GraniteSpeechConfig, Speech2TextConfig):
            kind().save_pretrained(tmp_path)
            assert kind.from_pretrained(tmp_path) == kind()

    def test_no_place(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"none/own.json: cannot be written: No such"):
            LlamaConfig().to_json_file(tmp_path / "none" / "own.json")

    def test_of_a_name(self, tmp_path):
        config = LlamaConfig(head_dim=8)
        config.to_json_file(tmp_path / "own.json")
        assert LlamaConfig.from_json_file(tmp_path / "own.json") == config
        assert json.loads(config.to_json_string(use_diff=False)) == {
            **config.to_dict(),
            "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        }

    def test_parts_of_a_model(self):
        whole = GraniteSpeechConfig.from_pretrained(TINY)
        part = GraniteSpeechEncoderConfig.from_pretrained(TINY)
        assert part == whole.encoder_config
        assert GraniteConfig.from_pretrained(TINY).vocab_size == whole.text_config.vocab_size
        assert whole.get_text_config() is whole.text_config

    def test_changes(self):
        config, unused = Speech2TextConfig.from_pretrained(
            TINY_S2T, dropout=0.5, num_labels=3, novelty=1, return_unused_kwargs=True
        )
        assert (config.dropout, config.num_labels, unused) == (0.5, 3, {"novelty": 1})
        with pytest.raises(InputError, match="a Speech2TextConfig has no novelty"):
            Speech2TextConfig.from_pretrained(TINY_S2T, novelty=1)

    def test_only_granite_speaks(self):
        with pytest.raises(UnsupportedOptionError, match="text_config is a LlamaConfig"):
            GraniteSpeechConfig(text_config=LlamaConfig())


GRANITE = {"encoder_config": {"num_layers": 16}, "projector_config": {"encoder_hidden_size": 1024}}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GraniteSpeechConfig, {**GRANITE, "text_config": {"vocab_size": 49160, "pad_token_id": 0}}),
        (GraniteSpeechConfig, {**GRANITE, "text_config": {"rope_theta": 1e7, "head_dim": 128}}),
        (Jais2Config, {"num_hidden_layers": 68, "hidden_size": 7168, "intermediate_size": 57344,
                       "num_attention_heads": 56, "rope_theta": 500000}),
        (LlamaConfig, {"vocab_size": 128256, "max_position_embeddings": 131072, "pad_token_id": -1,
                       "rope_theta": 5e5, "rope_scaling": LLAMA3, "eos_token_id": [128001, 128008],
                       "num_key_value_heads": 8}),
        (Speech2TextConfig, {"d_model": 1024, "encoder_attention_heads": 16, "num_beams": 5,
                             "decoder_attention_heads": 16, "encoder_ffn_dim": 4096}),
    ],
)  # fmt: skip
def test_released_ones_pass(kind, config):
    assert kind.from_dict(config)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Speech2TextConfig, "dropout"),
        (Speech2TextConfig, "activation_dropout"),
        (LlamaConfig, "attention_dropout"),
        (GraniteSpeechEncoderConfig, "dropout"),
    ],
)
def test_probabilities(kind, name, value):
    with pytest.raises(InputError, match=f"{name} is .*, at least 0 and at most 0.999"):
        kind(**{name: value})
