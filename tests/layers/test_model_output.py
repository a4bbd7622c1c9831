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
    cache: list | None = None


def test_what_is_none_is_no_item():
    output = Output(logits="l", cache=[1])
    assert output.logits == output["logits"] == output[0] == "l"
    assert output[:2] == output.to_tuple() == ("l", [1])
    assert list(output) == list(output.keys()) == ["logits", "cache"]
    assert {**output} == {"logits": "l", "cache": [1]}
    assert output.loss is None
    assert "loss" not in output
    with pytest.raises(KeyError):
        output["loss"]


def test_fields_keep_their_order_however_they_are_set():
    output = Output(logits="l")
    output.loss = 1.0
    output["cache"] = []
    assert output.to_tuple() == (1.0, "l", [])
    output.logits = None
    assert output.to_tuple() == (1.0, [])
    assert copy.deepcopy(output).to_tuple() == (1.0, [])


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
