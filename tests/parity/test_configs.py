"""Configuration classes: the documented fields, with the documented defaults."""

from __future__ import annotations

import pytest
import transformers
from transformers import PreTrainedConfig

import mlx_speech
from mlx_speech.models.granite_speech.projector import Blip2QFormerConfig

#: fields of every configuration, about the classes of transformers
COMMON = PreTrainedConfig().to_dict().keys()


def documented(config: PreTrainedConfig) -> dict:
    return {k: v for k, v in config.to_dict().items() if k == "model_type" or k not in COMMON}


@pytest.mark.parametrize(
    "name",
    [
        "GraniteSpeechConfig",
        "GraniteSpeechPlusConfig",
        "GraniteSpeechEncoderConfig",
        "GraniteSpeechPlusEncoderConfig",
        "Blip2QFormerConfig",
    ],
)
def test_fields_and_defaults(name):
    theirs = getattr(transformers, name)()
    ours = getattr(mlx_speech, name, Blip2QFormerConfig)()
    expected, found = documented(theirs), ours.to_dict()
    for part in ("encoder_config", "projector_config"):
        if part in expected:
            inner = documented(getattr(theirs, part))
            assert inner.items() <= found[part].items()
            assert (
                getattr(ours, part).__class__.__name__ == getattr(theirs, part).__class__.__name__
            )
            del expected[part]
    if text := expected.pop("text_config", None):
        assert found["text_config"]["model_type"] == text["model_type"] == "granite"
    assert len(expected) > 5
    assert expected.items() <= found.items()
    assert type(ours).from_dict(found) == ours
