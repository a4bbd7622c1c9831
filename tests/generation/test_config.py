"""Options of generation: which there are, which contradict each other."""

from __future__ import annotations

import mlx.core as mx
import pytest
from conftest import speech_inputs

from mlx_speech import ContextLengthError, GenerationConfig, InputError
from mlx_speech.generation import prefill


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
            ({"temperature": "hot"}, "temperature is 'hot', but must be a number"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": 2**64}, "seed is 18446744073709551616"),
            ({"top_p": 0.9}, "top_p shapes what is sampled"),
            ({"min_p": 0.1, "temperature": 0.0}, "min_p shapes what is sampled"),
            ({"stop_strings": ["x", ""]}, "empty stop string"),
            ({"stop_strings": "x\udcff"}, "lone surrogate"),
        ],
    )
    def test_impossible_ones(self, options, message):
        with pytest.raises(InputError, match=message):
            GenerationConfig(**options)

    def test_unknown_ones_are_named(self, tiny):
        model, processor = tiny
        with pytest.raises(InputError, match="no argument num_return_sequences, penalty_alpha"):
            model.generate(**processor("hi"), num_return_sequences=2, penalty_alpha=0.6)

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


def test_updates():
    config = GenerationConfig(max_new_tokens=5)
    assert config.updated(max_length=9) == GenerationConfig(max_length=9)
    with pytest.raises(InputError, match="give max_length or max_new_tokens, not both"):
        config.updated(max_length=9, max_new_tokens=3)
    with pytest.raises(InputError, match="unsupported generation option foo"):
        config.updated(foo=1)
