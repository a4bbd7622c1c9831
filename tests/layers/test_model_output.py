"""Outputs: attributes, items and tuples."""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from mlx_speech.errors import InputError
from mlx_speech.layers.model_output import ModelOutput, can_return_tuple


@dataclass(kw_only=True, eq=False)
class Output(ModelOutput):
    loss: float | None = None
    logits: str | None = None
    past_key_values: list | None = None


def test_what_is_none_is_no_item():
    output = Output(logits="l", past_key_values=[1])
    assert output.logits == output["logits"] == output[0] == "l"
    assert output[:2] == output.to_tuple() == ("l", [1])
    assert list(output) == list(output.keys()) == ["logits", "past_key_values"]
    assert {**output} == {"logits": "l", "past_key_values": [1]}
    assert output.loss is None
    assert "loss" not in output
    with pytest.raises(KeyError):
        output["loss"]


def test_fields_keep_their_order_however_they_are_set():
    output = Output(logits="l")
    output.loss = 1.0
    output["past_key_values"] = []
    assert output.to_tuple() == (1.0, "l", [])
    output.logits = None
    assert output.to_tuple() == (1.0, [])
    assert copy.deepcopy(output).to_tuple() == (1.0, [])


def test_the_cache_has_two_names():
    output = Output(logits="l", past_key_values=[1])
    assert output.cache is output["cache"] is output.get("cache") is output.past_key_values
    assert "cache" in output
    output.cache = [2]
    assert output.to_tuple() == ("l", [2])
    output["cache"] = None
    assert output.past_key_values is output.cache is output.get("cache") is None
    assert "cache" not in output
    assert not hasattr(ModelOutput(), "cache")
    with pytest.raises(AttributeError, match="Output has no caches"):
        _ = output.caches


@pytest.mark.parametrize(
    ("configured", "asked", "expected"),
    [(True, None, Output), (False, None, tuple), (False, True, Output), (True, False, tuple)],
)
def test_return_dict(configured, asked, expected):
    class Model:
        config = SimpleNamespace(return_dict=configured)

        @can_return_tuple
        def __call__(self, value):
            return Output(logits=value)

    output = Model()("l", return_dict=asked)
    assert type(output) is expected
    assert output[0] == "l"
    with pytest.raises(InputError, match="return_dict is 'no', but must be true or false"):
        Model()("l", return_dict="no")
