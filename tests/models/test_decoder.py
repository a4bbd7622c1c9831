"""The text decoders: what the reference makes of small random ones, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import DATA, TINY, edit_json, random_decoder
from mlx.utils import tree_flatten

import mlx_speech
from mlx_speech import (
    CheckpointError,
    InputError,
    Jais2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)
from mlx_speech.layers.cache import KVCache
from mlx_speech.loading import load_model
from mlx_speech.models import decoder

FOLDER = DATA / "decoders"
FAMILIES = ("granite", "jais2", "llama")


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name / "golden.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", FAMILIES)
def test_reference(name):
    """Logits of real tokens within 1e-4, loss within 1e-5, 24 greedy tokens and 4 beams alike."""
    model, expected = load_model(FOLDER / name), golden(name)
    assert type(model).__name__.lower().startswith(name)
    ids, mask = (mx.array(expected[key]) for key in ("ids", "mask"))
    labels = mx.where((mx.arange(2)[:, None] == 1) & (mx.arange(30) < 8), -100, ids)
    output = model(ids, attention_mask=mask, labels=labels)
    real = expected["mask"].astype(bool)
    np.testing.assert_allclose(np.array(output.logits)[real], expected["logits"][real], atol=1e-4)
    assert output.loss.item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    for key, num_beams in (("greedy", 1), ("beams", 4)):
        answer = model.generate(ids, attention_mask=mask, num_beams=num_beams, max_new_tokens=24)
        assert answer.tolist() == expected[key][:, : answer.shape[1]].tolist()
        assert set(expected[key][:, answer.shape[1] :].flatten().tolist()) <= {1}


def test_classification():
    """Of a batch padded on the left; `architectures` in config.json names the class."""
    model, expected = load_model(FOLDER / "llama-classifier"), golden("llama-classifier")
    assert isinstance(model, LlamaForSequenceClassification)
    ids, mask = (mx.array(expected[key]) for key in ("ids", "mask"))
    output = model(ids, attention_mask=mask, labels=mx.array([2, 0]))
    np.testing.assert_allclose(np.array(output.logits), expected["logits"], atol=1e-5)
    assert output.loss.item() == pytest.approx(expected["loss"].item(), abs=1e-5)
    # and on the right, with something behind the text that the mask does not know of
    turned = mx.concatenate([ids[1:, 7:], mx.full((1, 7), 1)], axis=1)
    logits = model(turned).logits
    assert mx.abs(logits - model(ids[1:, 7:]).logits).max().item() < 1e-5
    without = load_model(FOLDER / "llama-classifier")
    without.config.pad_token_id = None
    with pytest.raises(InputError, match="a batch of 2 needs pad_token_id"):
        without(ids)


def test_without_a_head():
    model = LlamaModel.from_pretrained(FOLDER / "llama")
    whole, ids = load_model(FOLDER / "llama"), mx.array([[5, 6, 7]])
    states = model(ids).last_hidden_state
    assert mx.array_equal(whole.lm_head(states), whole(ids).logits).item()
    with pytest.raises(CheckpointError, match="holds a llama model, not a Jais2Model"):
        mlx_speech.Jais2Model.from_pretrained(FOLDER / "llama")


@pytest.fixture
def llama(tmp_path) -> Path:
    return Path(shutil.copytree(FOLDER / "llama", tmp_path / "llama"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads, 3"),
        ({"hidden_act": "swoosh"}, "hidden_act is 'swoosh', but must be one of"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "rope_type 'proportional' is not"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters lack 'factor'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"problem_type": "guessing"}, "problem_type is 'guessing', but must be one of"),
    ],
)
def test_bad_configurations(llama, changes, message):
    edit_json(llama / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(llama)
    assert "\n" not in str(error.value)


def test_rotary_frequencies_of_old_checkpoints(llama):
    """Stored `inv_freq` tensors, and a head that is tied but stored all the same, are dropped."""
    weights = dict(mx.load(str(llama / "model.safetensors")))
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = mx.zeros(4)
    mx.eval(weights)
    mx.save_safetensors(str(llama / "model.safetensors"), weights)
    ids = mx.array([[5, 6, 7]])
    expected = load_model(FOLDER / "llama")(ids).logits
    assert mx.array_equal(load_model(llama)(ids).logits, expected).item()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    mx.save_safetensors(str(llama / "model.safetensors"), weights)
    edit_json(llama / "config.json", tie_word_embeddings=True)
    assert not hasattr(load_model(llama), "lm_head")


def test_documented_defaults():
    """Those of the documentation of Llama 2 and of Jais 2."""
    assert LlamaConfig().vocab_size == 32000
    assert LlamaConfig().num_key_value_heads == 32
    assert Jais2Config().num_attention_heads == 26
    assert Jais2Config().head_dim == 128
    assert Jais2Config().to_dict()["eos_token_id"] == 150024
    assert "rms_norm_eps" not in Jais2Config().to_dict()


IDS = mx.array([[5, 6, 7]])
BAD_INPUTS = [
    ({}, "exactly one of input_ids and inputs_embeds"),
    ({"input_ids": IDS, "inputs_embeds": mx.zeros((1, 3, 32))}, "exactly one of input_ids"),
    ({"input_ids": mx.array([[61]])}, "input_ids hold 61, the model knows 0 to 60"),
    ({"input_ids": mx.array([[-1]])}, "input_ids hold -1"),
    ({"input_ids": IDS[0]}, r"one text alone is ids\[None\]"),
    ({"input_ids": [[5]]}, "input_ids are list"),
    ({"input_ids": np.ones((1, 2))}, "input_ids are mlx.core.float32, but must be integers"),
    ({"inputs_embeds": mx.zeros((1, 3, 31))}, r"inputs_embeds are \(1, 3, 31\), .*length, 32"),
    ({"inputs_embeds": mx.zeros((1, 3, 32), mx.int32)}, "inputs_embeds are .*must be floats"),
    ({"input_ids": IDS, "attention_mask": np.ones((1, 4))}, r"attention_mask is \(1, 4\)"),
    ({"input_ids": IDS, "position_ids": mx.array([0, 1])}, r"position_ids are \(2,\)"),
    ({"input_ids": IDS, "position_ids": mx.zeros((1, 3))}, "position_ids are .*integers"),
    ({"input_ids": IDS, "cache_position": mx.array([1, 2, 3])}, "cache_position must be 0 to 2"),
    ({"input_ids": IDS, "past_key_values": [1]}, "past_key_values is a list, but"),
    ({"input_ids": IDS, "past_key_values": [KVCache()]}, "is a list of 1, .* of 2 layers"),
    ({"input_ids": IDS, "use_cache": IDS}, "use_cache is .*, but must be true or false"),
    ({"input_ids": IDS, "output_attentions": "yes"}, "output_attentions is 'yes'"),
    ({"input_ids": IDS, "labels": mx.array([[5, 6, 61]])}, "labels hold 61"),
    ({"input_ids": IDS, "labels": IDS, "num_items_in_batch": 0}, "num_items_in_batch is 0, but"),
    ({"input_ids": IDS, "labels": IDS, "num_items_in_batch": "1"}, "num_items_in_batch is '1'"),
    ({"input_ids": IDS, "labels": mx.array([[5, 6]])}, r"labels are \(1, 2\)"),
    ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 1}, r"array \(1, 1\), one for each"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS)
def test_inputs_that_make_no_sense(inputs, message):
    with pytest.raises(InputError, match=message) as error:
        random_decoder()(**inputs)
    assert "\n" not in str(error.value)


def test_caches_that_do_not_fit():
    model = random_decoder()
    cache = model(IDS).past_key_values
    with pytest.raises(InputError, match="past_key_values has 1 rows and 2 heads, but 2 and 2 are"):
        model(mx.repeat(IDS, 2, 0), past_key_values=cache)
    rotating = model.make_cache(max_kv_size=5)
    model(IDS, attention_mask=mx.ones((1, 3)), past_key_values=rotating)
    with pytest.raises(InputError, match="past it and takes no attention_mask"):
        model(IDS, attention_mask=mx.ones((1, 6)), past_key_values=rotating)


def test_cache_position_is_what_is_known():
    model = random_decoder()
    plain = model.forward(IDS, cache_position=np.arange(3))
    assert mx.array_equal(plain.logits, model(IDS).logits)
    more = model(IDS, past_key_values=plain.past_key_values, cache_position=mx.array([3, 4, 5]))
    assert more.past_key_values[0].length == 6


def test_the_cache_by_its_other_name():
    """As transformers calls it from 5.24 on."""
    model = random_decoder()
    whole = model(IDS).logits[:, -1]
    first = model(IDS[:, :2])
    again = model(IDS[:, 2:], cache=first.cache)
    assert again.cache is first.cache is first.past_key_values
    assert mx.allclose(again.logits[:, -1], whole, atol=1e-5).item()
    with pytest.raises(InputError, match="cache and past_key_values are the same"):
        model(IDS, cache=first.cache, past_key_values=first.cache)


@pytest.mark.parametrize(
    "keep", [-1, 1.5, "two", None, [0, "1"], [3], np.array([-4]), np.ones((2, 1), int)]
)
def test_positions_that_are_none(keep):
    with pytest.raises(InputError, match="logits_to_keep"):
        random_decoder()(IDS, logits_to_keep=keep)


def test_generation_waits_for_nothing(monkeypatch):
    """Neither a prompt's parts nor a step are checked: that is done once, at the door."""
    model = random_decoder()

    def refused(*args, **kwargs):
        raise AssertionError

    cache = model.make_cache()
    for name in ("check_token_ids", "check_array", "decoder_mask"):
        monkeypatch.setattr(decoder, name, refused)
    logits = model.prefill(IDS, cache, prefill_step_size=2)
    assert model.step(mx.argmax(logits, axis=-1), cache).shape == (1, 1, 61)
    with pytest.raises(AssertionError):
        model(IDS)


def test_padding_before_a_text_attends_to_nothing():
    """As if there were no attention; with its own value, a loss would differ from the reference."""
    model, without = random_decoder(), random_decoder()
    for layer in without.model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
    ids, mask = mx.array([[3, 4, 5, 6, 7]]), mx.array([[0, 0, 1, 1, 1]])
    found, expected = (m(ids, attention_mask=mask).logits for m in (model, without))
    assert mx.abs(found - expected)[:, :2].max().item() < 1e-5
    assert mx.abs(found - expected)[:, 2:].max().item() > 0.1


def test_packed_texts_are_as_alone():
    model = random_decoder()
    ids, positions = mx.array([[5, 6, 7, 8, 9]]), mx.array([[0, 1, 2, 0, 1]])
    packed = model(ids, position_ids=positions, use_cache=False)
    assert packed.past_key_values is None
    alone = mx.concatenate([model(ids[:, :3]).logits, model(ids[:, 3:]).logits], axis=1)
    assert mx.abs(packed.logits - alone).max().item() < 1e-4


def test_dropout_acts_in_training_alone():
    model = random_decoder(attention_dropout=0.5)
    plain = random_decoder()(IDS).logits
    assert mx.array_equal(model.eval()(IDS).logits, plain)
    model.train()
    assert mx.abs(model(IDS).logits - model(IDS).logits).max().item() > 0.01
    assert mx.array_equal(random_decoder().train()(IDS).logits, plain)


def test_gradients_flow_through_a_call():
    """With labels, in training, with the cache that comes back by default."""
    model = random_decoder()
    loss, gradients = nn.value_and_grad(model, lambda m: m(IDS, labels=IDS).loss)(model)
    sizes = [mx.abs(value).max().item() for _, value in tree_flatten(gradients)]
    assert loss.item() > 0
    assert min(sizes) > 0


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_stays(name, dtype):
    """No layer hands on float32."""
    model = load_model(FOLDER / name, dtype=dtype)
    cache = model.make_cache()
    output = model(mx.array([[5, 6, 7]]), past_key_values=cache, output_hidden_states=True)
    assert {state.dtype for state in output.hidden_states} == {dtype}
    unfused = model(IDS, attention_mask=mx.array([[0, 1, 1]]), output_attentions=True)
    assert {array.dtype for array in (unfused.logits, *unfused.attentions)} == {dtype}
    assert output.logits.dtype == dtype
    assert {part.dtype for layer in cache for part in layer.state} == {dtype}


def test_config_is_kept_whole(llama):
    """What no class knows is written back."""
    edit_json(llama / "config.json", novelty={"a": 1})
    model = LlamaForCausalLM.from_pretrained(llama)
    saved = json.loads(json.dumps(model.config.to_dict()))
    assert saved["novelty"] == {"a": 1}
    assert saved["rope_parameters"]["rope_type"] == "llama3"


@pytest.mark.parametrize("family", ["llama", "jais2"])
def test_documented_example(family, tmp_path):
    """What transformers' documentation shows of the class, with only the import changed."""
    from mlx_speech import AutoTokenizer, Jais2ForCausalLM

    model_class = {"llama": LlamaForCausalLM, "jais2": Jais2ForCausalLM}[family]
    small = load_model(FOLDER / family).config.to_dict() | {"vocab_size": 512}
    untrained = model_class(model_class.config_class.from_dict(small))
    (tmp_path / "config.json").write_text(json.dumps(small))
    untrained.save_weights(str(tmp_path / "model.safetensors"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)

    model = model_class.from_pretrained(str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))

    prompt = "Hey, are you conscious? Can you talk to me?"
    inputs = tokenizer(prompt, return_tensors="pt")

    generate_ids = model.generate(inputs.input_ids, max_length=60)
    text = tokenizer.batch_decode(
        generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )[0]
    assert text.startswith(tokenizer.decode(inputs.input_ids[0]))
    assert generate_ids.shape[1] <= 60


def test_documented_configuration():
    """A model from a configuration, at full size: nothing is computed before it is needed."""
    configuration = LlamaConfig()
    model = LlamaModel(configuration)
    configuration = model.config
    assert len(model.layers) == 32
