"""The decoder's door: what a caller may give, and that generation goes past it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from conftest import TINY_S2T

from mlx_speech import InputError, Speech2TextModel
from mlx_speech.loading import load_model

IDS = mx.array([[2, 19, 136]])


@pytest.fixture(scope="module")
def model():
    return load_model(TINY_S2T, dtype=mx.float32)


@pytest.fixture(scope="module")
def headless():
    return Speech2TextModel.from_pretrained(TINY_S2T, dtype=mx.float32)


@pytest.fixture(scope="module")
def x() -> mx.array:
    return mx.random.normal((1, 40, 80), key=mx.random.key(2))


class TestIds:
    @pytest.mark.parametrize("bad", [320, 9999, -1])
    @pytest.mark.parametrize("name", ["decoder_input_ids", "labels"])
    def test_ids_beyond_the_vocabulary(self, model, headless, x, name, bad):
        ids = mx.array([[2, bad, 5]])
        message = rf"{name} hold {bad}, the model knows 0 to 319.*model\.resize_token_embeddings"
        with pytest.raises(InputError, match=message):
            model(x, **{name: ids})
        if name != "labels":
            with pytest.raises(InputError, match=message):
                headless(x, **{name: ids})
            with pytest.raises(InputError, match=message):
                model.get_decoder()(ids, encoder_hidden_states=mx.zeros((1, 4, 128)))

    def test_the_remedy(self, x):
        fresh = load_model(TINY_S2T, dtype=mx.float32)
        fresh.resize_token_embeddings(330)
        assert fresh(x, labels=mx.array([[2, 325]])).logits.shape == (1, 2, 330)
        bare = Speech2TextModel.from_pretrained(TINY_S2T)
        bare.resize_token_embeddings(330)
        assert bare(x, decoder_input_ids=mx.array([[2, 325]])).last_hidden_state.shape[1] == 2

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"decoder_input_ids": mx.array([2, 5])}, r"one text alone is ids\[None\]"),
            ({"decoder_input_ids": np.array([2, 5])}, r"one text alone is ids\[None\]"),
            ({"decoder_input_ids": mx.array([[2.0]])}, "float32, but must be integers"),
            ({"decoder_input_ids": [[2, 5]]}, "are list, but must be an array"),
            ({"labels": mx.array([5])}, r"labels are \(1,\), but must be an array \(batch, length"),
            (
                {"decoder_input_ids": IDS, "labels": mx.array([[5]])},
                r"labels are \(1, 1\), but must be an array \(1, 3\)",
            ),
            (
                {"decoder_input_ids": IDS, "decoder_attention_mask": mx.ones((1, 2))},
                r"\(1, 2\), but",
            ),
            ({"decoder_input_ids": IDS, "cache_position": mx.array([1, 2, 3])}, "must be 0 to 2"),
            ({"decoder_inputs_embeds": mx.zeros((1, 2, 64))}, r"\(recordings, length, 128\)"),
            (
                {"decoder_input_ids": IDS, "past_key_values": [1, 2]},
                "what make_cache or an earlier",
            ),
            ({"decoder_input_ids": IDS, "past_key_values": ()}, None),
            (
                {"decoder_input_ids": IDS, "attention_mask": mx.ones((40,))},
                r"are \(40,\), but must",
            ),
            ({"decoder_input_ids": IDS, "attention_mask": [1] * 40}, "are list, but must be"),
        ],
    )
    def test_other_arrays(self, model, x, inputs, message):
        if message is None:
            assert model(x, **inputs).logits.shape == (1, 3, 320)
            return
        with pytest.raises(InputError, match=message):
            model(x, **inputs)

    @pytest.mark.parametrize(
        "given",
        [7, mx.zeros((1, 4, 128)), {}, {"hidden_states": 1}, (), (None,), (mx.zeros((4, 128)),)],
    )
    def test_encoder_outputs_that_are_none(self, model, given):
        with pytest.raises(InputError, match="encoder_outputs"):
            model(encoder_outputs=given, decoder_input_ids=IDS)


def test_tuples_because_the_configuration_says_so(x):
    model = load_model(TINY_S2T, dtype=mx.float32)
    expected = model(x, decoder_input_ids=IDS, use_cache=False).to_tuple()
    model.config.return_dict = False
    found = model(x, decoder_input_ids=IDS, use_cache=False)
    assert type(found) is tuple
    assert [mx.array_equal(*pair).item() for pair in zip(found, expected, strict=True)] == [
        True
    ] * 2
    assert model(x, decoder_input_ids=IDS, return_dict=True).logits.shape == (1, 3, 320)
    assert model.generate(x, max_new_tokens=2).shape[0] == 1


class TestUseCache:
    def test_the_configuration_decides(self, x):
        model = load_model(TINY_S2T, dtype=mx.float32)
        assert model.config.use_cache
        output = model(x, decoder_input_ids=IDS)
        assert [c.length for c in output.past_key_values[:-1]] == [3] * 3
        assert model(x, decoder_input_ids=IDS, use_cache=False).past_key_values is None
        model.config.use_cache = False
        assert "past_key_values" not in model(x, decoder_input_ids=IDS)
        assert model(x, decoder_input_ids=IDS, use_cache=True).past_key_values is not None

    def test_the_recording_again(self, model, x):
        """Accepted where it is as long as that of the cache, which is what counts."""
        first = model(x, decoder_input_ids=IDS[:, :2])
        again = {"decoder_input_ids": IDS[:, 2:], "past_key_values": first.past_key_values}
        found = model(mx.zeros_like(x), **again).logits
        whole = model(x, decoder_input_ids=IDS).logits[:, 2:]
        assert mx.allclose(found, whole, atol=1e-4).item()

    def test_an_id_that_is_refused_leaves_the_cache_as_it_was(self, model, x):
        cache = model.make_cache()
        with pytest.raises(InputError):
            model(x, decoder_input_ids=mx.array([[2, 9999]]), past_key_values=cache)
        assert cache[0].length == 0
        assert not cache[-1].layers


def test_steps_of_generation_wait_for_nothing(model, x, monkeypatch):
    """`prefill` and each step only build a graph: no value is asked for."""
    cache = model.make_cache()
    tokens = mx.array([[2]])
    logits = model.prefill(tokens, cache, input_features=x)

    def refuse(*_):
        raise AssertionError("a value was asked for")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(mx.array, name, refuse)
    monkeypatch.setattr(mx, "eval", refuse)
    for _ in range(2):
        logits = model.step(mx.argmax(logits, axis=-1), cache)
    monkeypatch.undo()
    assert logits.shape == (1, 1, 320)


class TestHeadMasks:
    """As in transformers 4, with which no other test compares: what a head's values are multiplied
    by, its output is."""

    @pytest.mark.parametrize("name", ["head_mask", "decoder_head_mask", "cross_attn_head_mask"])
    def test_a_head_counts_for_less(self, x, name):
        model = load_model(TINY_S2T, dtype=mx.float32)
        encoder = name == "head_mask"
        layers = (model.model.encoder if encoder else model.model.decoder).layers
        mask = mx.ones((len(layers), model.config.decoder_attention_heads))
        mask[1, 0] = 0.25
        inputs = {"decoder_input_ids": mx.array([[2, 5, 7]]), "output_attentions": True}
        whole, found = model(x, **inputs), model(x, **inputs, **{name: mask})
        attention = layers[1].encoder_attn if "cross" in name else layers[1].self_attn
        width = model.config.d_model // mask.shape[1]
        for part in ("weight", "bias"):
            attention.v_proj[part][:width] *= 0.25
        expected = model(x, **inputs)
        assert mx.allclose(found.logits, expected.logits, atol=1e-5)
        assert not mx.allclose(found.logits, whole.logits, atol=1e-3)
        shown = {"head_mask": "encoder_attentions", "decoder_head_mask": "decoder_attentions"}
        weights = shown.get(name, "cross_attentions")
        assert mx.allclose(found[weights][1][:, 0], expected[weights][1][:, 0] * 0.25, atol=1e-6)
        assert mx.allclose(found[weights][1][:, 1], expected[weights][1][:, 1], atol=1e-6)

    @pytest.mark.parametrize("name", ["head_mask", "decoder_head_mask", "cross_attn_head_mask"])
    def test_of_another_shape(self, model, x, name):
        with pytest.raises(InputError, match=rf"{name} are \(3,\), but must be an array \(\d, 4"):
            model(x, decoder_input_ids=mx.array([[2]]), **{name: mx.ones((3,))})


def test_a_loss_of_one_part_of_a_batch(model, x):
    labels = mx.array([[5, 7, -100, 2]])
    mean = model(x, labels=labels).loss.item()
    part = model(x, labels=labels, num_items_in_batch=12).loss.item()
    assert part == pytest.approx(mean * 3 / 12, rel=1e-5)


@pytest.mark.parametrize("cache", [3, "past", [1, 2, 3], {}])
def test_what_is_no_cache(model, x, cache):
    with pytest.raises(InputError, match="must be what make_cache or an earlier call returned"):
        model(x, decoder_input_ids=mx.array([[2]]), past_key_values=cache)
