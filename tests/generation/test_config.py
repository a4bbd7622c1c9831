"""Options of generation: which there are, which contradict each other."""

from __future__ import annotations

import dataclasses
import math

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_decoder, speech_inputs

from mlx_speech import (
    CheckpointError,
    ContextLengthError,
    GenerationConfig,
    InputError,
    UnsupportedOptionError,
)
from mlx_speech.generation import prefill
from mlx_speech.generation.sampling import truncate


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens is 0"),
            ({"temperature": -1.0}, "temperature is -1"),
            ({"top_p": 0.0}, "top_p is 0"),
            ({"num_beams": 0}, "num_beams is 0"),
            ({"early_stopping": "often"}, "early_stopping is 'often'"),
            ({"temperature": 0.5, "num_beams": 2}, "do not go together"),
            ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5, but must be an integer"),
            ({"temperature": "hot"}, "temperature is 'hot', but must be a finite number"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": 2**64}, "seed is 18446744073709551616"),
            ({"top_p": 0.9}, "top_p shapes what is sampled"),
            ({"min_p": 0.1, "temperature": 0.0}, "min_p shapes what is sampled"),
            ({"stop_strings": ["x", ""]}, "empty stop string"),
            ({"stop_strings": "x\udcff"}, "lone surrogate"),
            ({"stop_strings": b"x"}, "stop_strings is b'x', but must be text or a list"),
            ({"stop_strings": ["x", 1]}, "stop_strings is .*, but must be text or a list"),
            ({"num_beams": 99999999999}, "num_beams is 99999999999, .* at most 256"),
            ({"num_beams": 257}, "num_beams is 257, .* at most 256"),
            ({"num_draft_tokens": 10**6}, "num_draft_tokens is 1000000, .* at most 256"),
            ({"length_penalty": 2**63}, "length_penalty is 9223372036854775808, .* at most 5"),
            ({"length_penalty": -math.inf}, "length_penalty is -inf, but must be a finite number"),
            ({"temperature": math.nan}, "temperature is nan, but must be a finite number"),
            ({"temperature": 1e30}, "temperature is 1e.30, .* at most 1e.06"),
            ({"temperature": 1.0, "top_k": 10**30}, "top_k is 10+, .* at most 2147483647"),
            ({"temperature": 1.0, "top_p": math.nan}, "top_p is nan"),
            ({"repetition_penalty": 1e-40}, "repetition_penalty is 1e-40, .* at least 0.01"),
            ({"max_new_tokens": 10**100}, "max_new_tokens is 10+, .* at most 2147483647"),
            ({"max_new_tokens": True}, "max_new_tokens is True, but must be an integer"),
            ({"do_sample": "yes"}, "do_sample is 'yes', but must be true or false"),
            ({"eos_token_id": "0"}, "eos_token_id is '0', but must be an integer"),
            ({"eos_token_id": [0, None]}, r"eos_token_id is \[0, None\], .* a list in which each"),
            ({"pad_token_id": 2**31}, "pad_token_id is 2147483648, .* at most 2147483647"),
        ],
    )
    def test_impossible_ones(self, options, message):
        with pytest.raises(InputError, match=message):
            GenerationConfig(**options)

    def test_none_is_the_default(self):
        names = [f.name for f in dataclasses.fields(GenerationConfig)]
        assert GenerationConfig(**dict.fromkeys(names)) == GenerationConfig()

    def test_numbers_of_other_libraries(self):
        given = {
            "max_new_tokens": np.int64(3),
            "temperature": np.float32(0.5),
            "top_k": mx.array(2),
        }
        config = GenerationConfig(**given, eos_token_id=np.array([1, 2]), pad_token_id=0.0)
        plain = {"max_new_tokens": 3, "temperature": 0.5, "top_k": 2, "pad_token_id": 0}
        assert config == GenerationConfig(**plain, eos_token_id=[1, 2])
        assert type(config.max_new_tokens) is int
        assert config.eos_token_ids == (1, 2)

    def test_ids_that_are_none(self):
        """Old checkpoints say -1, and others name tokens that the model does not have."""
        config = GenerationConfig(pad_token_id=-1, eos_token_id=[-1, 7])
        assert config.fill_token_id == 7
        model = random_decoder()
        ids = mx.array([[5, 6]])
        expected = model.generate(ids, max_new_tokens=3).tolist()
        for eos in (-1, 10**6, [-1, 10**6]):
            assert model.generate(ids, max_new_tokens=3, eos_token_id=eos).tolist() == expected
            beams = {"max_new_tokens": 3, "num_beams": 2}
            found = model.generate(ids, **beams, eos_token_id=eos).tolist()
            assert found == model.generate(ids, **beams).tolist()

    @pytest.mark.parametrize("temperature", [1e6, 1e-300])
    def test_extreme_temperatures(self, temperature):
        """The logits stay numbers: at most even, or the likeliest alone."""
        config = GenerationConfig(temperature=temperature, top_p=0.9, min_p=0.0)
        kept = truncate(mx.array([[90.0, -90.0, 89.0]]), config)[0].tolist()
        assert not any(map(math.isnan, kept))
        assert (kept[1:] == [-math.inf] * 2) == (temperature < 1)

    def test_another_kind_of_configuration(self, tiny):
        model, processor = tiny
        with pytest.raises(InputError, match=r"generation_config is .*, but must be a Generation"):
            model.generate(**processor("hi"), generation_config={"max_new_tokens": 3})

    def test_unknown_ones_are_named(self, tiny):
        model, processor = tiny
        with pytest.raises(InputError, match="no argument bar, foo"):
            model.generate(**processor("hi"), foo=2, bar=0.6)
        with pytest.raises(UnsupportedOptionError, match=r"penalty_alpha=0.6 is not supported: "):
            model.generate(**processor("hi"), penalty_alpha=0.6)
        message = "cache_implementation='static' is not supported: a cache grows in unified memory"
        with pytest.raises(UnsupportedOptionError, match=message):
            model.generate(**processor("hi"), cache_implementation="static")

    def test_unsupported_ones_that_ask_for_nothing(self):
        config = GenerationConfig(
            penalty_alpha=0, num_beam_groups=1, guidance_scale=None, cache_implementation="dynamic"
        )
        assert config.num_beam_groups == 1

    def test_context_length(self, tiny):
        model, _processor = tiny
        with pytest.raises(ContextLengthError, match=r"2 tokens and 1100 .* context of 1024"):
            model.generate(mx.array([[5, 6]]), max_new_tokens=1100)

    def test_beams_do_not_stream(self, tiny):
        model, _processor = tiny
        with pytest.raises(InputError, match="num_beams cannot stream"):
            prefill(model, mx.array([[5]]), num_beams=2, streaming=True).steps()

    def test_sampling_with_a_seed_on_the_model(self, tiny):
        model, processor = tiny
        inputs = speech_inputs(processor, "synthetic/short.wav")

        def draw(seed):
            return model.generate(
                **inputs, temperature=30.0, top_k=50, max_new_tokens=12, seed=seed
            ).tolist()

        assert draw(1) == draw(1)
        assert draw(1) != draw(2)


class TestChanges:
    def test_of_a_call(self):
        """Its options go before its configuration, and this before the checkpoint's."""
        checkpoint = GenerationConfig(max_new_tokens=5, num_beams=3, length_penalty=2.0)
        own = GenerationConfig(max_length=9, length_penalty=0.5)
        config = checkpoint.overridden(own, length_penalty=1.5)
        assert (config.max_new_tokens, config.max_length) == (None, 9)
        assert (config.num_beams, config.length_penalty) == (3, 1.5)
        assert checkpoint.overridden(num_beams=None, do_sample=None).num_beams == 1
        assert checkpoint.overridden(own, max_new_tokens=2).limited(4).max_new_tokens == 2
        for asked in ({"temperature": 1.0}, {"do_sample": True}, {"streaming": True}):
            assert checkpoint.overridden(**asked).num_beams == 1
        with pytest.raises(InputError, match="give max_length or max_new_tokens, not both"):
            checkpoint.overridden(max_length=9, max_new_tokens=3)
        with pytest.raises(InputError, match="unsupported generation option foo"):
            checkpoint.overridden(foo=1)

    def test_limits(self):
        assert GenerationConfig(min_length=7).limited(5).min_new_tokens == 2
        assert GenerationConfig(min_length=7, min_new_tokens=3).limited(5).min_new_tokens == 3
        assert GenerationConfig(min_length=3).limited(5).min_new_tokens == 0
        assert GenerationConfig().limited(5, room=7).max_new_tokens == 7
        assert GenerationConfig(max_new_tokens=9).limited(5, room=7).max_new_tokens == 9

    def test_in_place(self):
        """By assignment and by `update`, as people do; checked at the latest in a call."""
        model, ids = random_decoder(), mx.array([[5, 6]])
        model.generation_config.eos_token_id = None
        model.generation_config.max_new_tokens = 4
        assert model.generate(ids).shape == (1, 6)
        assert model.generation_config.update(max_new_tokens=2, foo=1) == {"foo": 1}
        assert model.generate(ids).shape == (1, 4)
        with pytest.raises(InputError, match="has no option max_new_token"):
            model.generation_config.max_new_token = 3
        with pytest.raises(InputError, match="num_beams is 0"):
            model.generation_config.update(num_beams=0)
        model.generation_config.top_k = 3  # of no use before somebody samples
        assert model.generate(ids, do_sample=True).shape == (1, 4)
        model.generation_config.max_new_tokens = "x"
        with pytest.raises(InputError, match="max_new_tokens is 'x', but must be an integer"):
            model.generate(ids)

    def test_as_dictionaries(self):
        config = GenerationConfig(num_beams=2, eos_token_id=[3])
        assert config.to_diff_dict() == {"num_beams": 2, "eos_token_id": [3]}
        assert GenerationConfig(**config.to_dict()) == config
        model = random_decoder()
        assert model.generation_config.eos_token_id == model.config.eos_token_id


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("stored", "config", "message"),
        [
            ({"eos_token_id": "2"}, {}, "generation_config.json: eos_token_id is '2', but must be"),
            ({"eos_token_id": {}}, {}, "generation_config.json: eos_token_id is {}"),
            ({"pad_token_id": 0.5}, {}, "generation_config.json: pad_token_id is 0.5"),
            ({"num_beams": 0}, {}, "generation_config.json: num_beams is 0"),
            ({"num_beams": 20000}, {}, "generation_config.json: num_beams is 20000, .* 256"),
            ({"length_penalty": math.nan}, {}, "generation_config.json: length_penalty is nan"),
            ({"length_penalty": 2**63}, {}, "generation_config.json: length_penalty is 92"),
            ({"early_stopping": "now"}, {}, "generation_config.json: early_stopping is 'now'"),
            ({"bad_words_ids": [[]]}, {}, "generation_config.json: bad_words_ids hold an empty"),
            ({}, {"num_beams": -1}, "^config.json: num_beams is -1"),
            ({"num_beams": 2}, {"eos_token_id": [1, "2"]}, "^config.json: eos_token_id is "),
            ({}, {"text_config": {"pad_token_id": "0"}}, "config.json: text_config: pad_token_id"),
            ({"max_length": 0}, {"is_encoder_decoder": True}, "config.json: max_length is 0"),
        ],
    )
    def test_malformed(self, stored, config, message):
        with pytest.raises(CheckpointError, match=message):
            GenerationConfig.from_checkpoint(stored, config)

    def test_plain_values_are_taken(self):
        stored = {"eos_token_id": [0.0, 2], "num_beams": 2.0, "temperature": "of chat", "top_k": -1}
        config = GenerationConfig.from_checkpoint(stored, {"text_config": [], "pad_token_id": -1})
        assert config == GenerationConfig(eos_token_id=[0, 2], num_beams=2, pad_token_id=-1)
