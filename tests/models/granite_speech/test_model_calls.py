"""How the model is called: what a caller may give and gets, and that generation goes past it."""

from __future__ import annotations

import mlx.core as mx
import pytest
from conftest import TINY, speech_inputs

from mlx_speech import (
    GraniteSpeechConfig,
    GraniteSpeechPlusConfig,
    InputError,
    UnsupportedOptionError,
    load,
)

RECORDING = "synthetic/espeak_00.flac"


@pytest.fixture(scope="module")
def inputs(tiny) -> dict[str, mx.array]:
    """Of one recording of 18 audio tokens."""
    return speech_inputs(tiny[1], RECORDING)


class TestErrors:
    @pytest.mark.parametrize("bad", [9999, -1, 512])
    def test_ids_beyond_the_vocabulary(self, tiny, inputs, bad):
        model, _ = tiny
        assert model.language_model.vocab_size == 512
        ids = mx.concatenate([inputs["input_ids"], mx.array([[bad]])], axis=1)
        with pytest.raises(InputError, match=f"input_ids hold {bad}, .*resize_token_embeddings"):
            model(ids, inputs["input_features"])
        with pytest.raises(InputError, match=f"labels hold {bad}, but must be within 0 and 511"):
            model(mx.array([[5, 6]]), labels=mx.array([[5, bad]]))

    def test_an_audio_token_beyond_the_table_is_none(self):
        """As in the released checkpoints, whose tables end before it."""
        model, _ = load(TINY, dtype=mx.float32)
        model.config.audio_token_index = 512
        audio = mx.zeros((1, 2, 128))
        ids = mx.array([[5, 512, 512, 6]])
        assert model(ids, audio_features=audio).logits.shape == (1, 4, 512)
        with pytest.raises(InputError, match="input_ids hold 513"):
            model(mx.array([[5, 513]]))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"input_ids": None}, "exactly one of input_ids and inputs_embeds"),
            ({"inputs_embeds": mx.zeros((1, 2, 128))}, "exactly one of input_ids and inputs_em"),
            (
                {"input_ids": None, "inputs_embeds": mx.zeros((1, 2, 128))},
                "recordings need input_ids to say where",
            ),
            ({"input_ids": mx.array([5, 6])}, r"are \(2,\), but must be an array \(batch, len"),
            ({"input_ids": mx.array([[5.0]])}, "float32, but must be integers"),
            ({"input_features": mx.zeros((1, 87, 80))}, r"87, 80\), but .*recordings, frames, 160"),
            ({"input_features": mx.zeros((87, 160))}, r"\(87, 160\), but must be an array"),
            ({"input_features": [[0.0]]}, "input_features are list"),
            ({"input_features_mask": mx.ones((1, 17))}, r"\(1, 17\), but must be an array \(1, 18"),
            ({"feature_lengths": mx.array([88])}, r"is \[88\], but must be within 1 and 87"),
            ({"feature_lengths": mx.array([0])}, "must be within 1 and 87"),
            ({"feature_lengths": mx.array([80, 7])}, r"\(2,\), but must be an array \(1\)"),
            ({"audio_features": mx.zeros((1, 18, 128))}, "give one of them"),
            ({"attention_mask": mx.ones((1, 3))}, r"attention_mask is \(1, 3\), but must be"),
            ({"labels": mx.array([[5, 6]])}, r"labels are \(1, 2\), but must be an array"),
            ({"logits_to_keep": "two"}, "logits_to_keep is 'two'"),
            ({"adapter": "on"}, "adapter is 'on', but must be true or false"),
        ],
    )
    def test_other_arrays(self, tiny, inputs, changes, message):
        model, _ = tiny
        with pytest.raises(InputError, match=message):
            model(**{**inputs, "attention_mask": None, **changes})

    def test_audio_features_of_another_width(self, tiny):
        with pytest.raises(InputError, match=r"audio_features are \(1, 2, 64\), but must be"):
            tiny[0](mx.array([[5, 4, 4]]), audio_features=mx.zeros((1, 2, 64)))


class TestAudioFeatures:
    def test_they_are_the_encoders_output_and_an_array(self, tiny, inputs):
        """The array that transformers 4.56 and 5.0 return, in the output of later versions."""
        model, _ = tiny
        features = model.get_audio_features(inputs["input_features"])
        encoded = model.encoder(inputs["input_features"])
        audio = features.pooler_output
        assert mx.array_equal(features.last_hidden_state, encoded.last_hidden_state).item()
        assert list(features) == ["last_hidden_state", "pooler_output", "non_blank", "ctc_logits"]
        assert features.shape == audio.shape == (1, 18, 128)
        assert features.dtype == mx.float32
        assert mx.array_equal(mx.array(features), audio).item()
        assert mx.allclose(2 * audio - features, features.astype(mx.float32)).item()
        as_tuple = model.get_audio_features(inputs["input_features"], return_dict=False)
        assert mx.array_equal(as_tuple[1], audio).item()
        with pytest.raises(AttributeError):
            _ = features.no_such_thing

    def test_attention_weights_cannot_be_had(self, tiny, inputs):
        model, _ = tiny
        features = model.get_audio_features(inputs["input_features"], output_attentions=False)
        assert features.attentions is None
        with pytest.raises(UnsupportedOptionError, match="output_attentions: the encoder attends"):
            model.get_audio_features(inputs["input_features"], output_attentions=True)

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (None, "input_ids are NoneType, but must be an array"),
            (mx.array([[5, 10**6]]), "input_ids hold 1000000, the model knows 0 to"),
        ],
    )
    def test_ids_are_checked_before_they_are_merged(self, tiny, ids, message):
        with pytest.raises(InputError, match=message):
            tiny[0].get_merged_audio_embeddings(ids, None)

    @pytest.mark.parametrize("states", [None, mx.zeros((15, 64))])
    def test_the_projector_takes_recordings(self, tiny, states):
        with pytest.raises(InputError, match=r"hidden_states are .*, but must be an array"):
            tiny[0].project(states)

    def test_they_may_be_given_back(self, tiny, inputs):
        model, _ = tiny
        features = model.get_audio_features(inputs["input_features"])
        expected = model(**inputs).logits
        ids = inputs["input_ids"]
        for given in (features, features.pooler_output):
            found = model(ids, audio_features=given, attention_mask=inputs["attention_mask"])
            assert mx.array_equal(found.logits, expected).item()
        merged = model.get_merged_audio_embeddings(ids, features)
        assert mx.allclose(model(inputs_embeds=merged, adapter=True).logits, expected).item()


def test_tuples_because_the_configuration_says_so(inputs):
    model, _ = load(TINY, dtype=mx.float32)
    expected = model(**inputs, use_cache=False).to_tuple()
    for part in (model, model.encoder, model.language_model, model.language_model.model):
        part.config.return_dict = False
    found = model(**inputs, use_cache=False)
    assert type(found) is tuple
    assert [mx.array_equal(*pair).item() for pair in zip(found, expected, strict=True)] == [
        True
    ] * 2
    assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1


class TestCache:
    def test_it_comes_back_and_knows_of_the_adapter(self, tiny, inputs):
        """A loop written for transformers brings the audio once; the adapter stays on."""
        model, _ = tiny
        step = {"input_ids": mx.array([[73]])}
        first = model(**inputs)
        found = model(**step, past_key_values=first.past_key_values).logits
        ids = mx.concatenate([inputs["input_ids"], step["input_ids"]], axis=1)
        whole = model(ids, inputs["input_features"]).logits[:, -1:]
        assert mx.allclose(found, whole, atol=1e-3).item()
        off = model(**inputs, adapter=False).past_key_values
        assert not mx.allclose(model(**step, past_key_values=off).logits, whole, atol=0.1).item()
        text = model(mx.array([[5, 6]])).past_key_values
        assert not text[0].adapted
        cache = model.make_cache()
        model.prefill(inputs["input_ids"], cache, input_features=inputs["input_features"])
        assert mx.allclose(model(**step, past_key_values=cache).logits, whole, atol=1e-3).item()

    def test_none_is_made_unless_asked_for(self, tiny, inputs):
        assert tiny[0](**inputs, use_cache=False).past_key_values is None


def test_steps_of_generation_wait_for_nothing(tiny, inputs, monkeypatch):
    """Each step only builds a graph: no value is asked for; the adapter is on as in the prompt."""
    model, _ = tiny
    cache = model.make_cache()
    audio = {"input_features": inputs["input_features"]}
    logits = model.prefill(inputs["input_ids"], cache, **audio)
    token = mx.argmax(logits, axis=-1)
    whole = model(mx.concatenate([inputs["input_ids"], token], axis=1), **audio).logits

    def refuse(*_):
        raise AssertionError("a value was asked for")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(mx.array, name, refuse)
    monkeypatch.setattr(mx, "eval", refuse)
    logits = model.step(token, cache)
    monkeypatch.undo()
    assert mx.allclose(logits, whole[:, -1:], atol=1e-3).item()


TEXT = {"logits_scaling": 8.0}


class TestLogitsDivisor:
    """What the head's products are divided by."""

    @pytest.mark.parametrize(
        ("kind", "version", "divisor"),
        [
            (GraniteSpeechConfig, "5.9.1", 8.0),
            (GraniteSpeechConfig, "5.19.0", 1.0),
            (GraniteSpeechPlusConfig, "5.6.0.dev0", 8.0),
            (GraniteSpeechPlusConfig, "5.18.2", 1.0),
            (GraniteSpeechPlusConfig, "5.19.0", 8.0),  # the update of October 2026
            (GraniteSpeechPlusConfig, "5.19.0.dev0", 8.0),
            (GraniteSpeechPlusConfig, "5.20.0", 1.0),
        ],
    )
    def test_by_what_saved_the_checkpoint(self, kind, version, divisor):
        config = kind(text_config=TEXT, transformers_version=version)
        assert config.logits_divisor == divisor

    @pytest.mark.parametrize("version", ["4.57.6", "5.23.0"])
    def test_it_can_be_set(self, version):
        config = GraniteSpeechConfig(
            text_config=TEXT, transformers_version=version, logits_divisor=3
        )
        again = GraniteSpeechConfig.from_dict(config.to_dict())
        assert config.logits_divisor == again.logits_divisor == 3.0
        with pytest.raises(InputError, match="logits_divisor"):
            GraniteSpeechConfig(logits_divisor=0)
