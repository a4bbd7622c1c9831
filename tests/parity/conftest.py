"""Pairs of models, transformers' and ours, made once for all tests that compare them."""

from __future__ import annotations

from pathlib import Path

import pytest

# what the reference's packages warn about among themselves; everything else stays an error
THIRD_PARTY_WARNINGS = (
    "ignore:Could not find a config file in:UserWarning:peft",
    "ignore:At least one mel filterbank has all zero values:UserWarning:torchaudio",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers",
    "ignore:`torch.jit.load` is:DeprecationWarning",
    # from 5.24 on, where it is `cache`
    "ignore:`past_key_values` is deprecated:FutureWarning",
)


def pytest_configure(config):
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def speech_pair(tmp_path_factory):
    """By the name of a case: (transformers' model, ours loaded from what it saved, the folder)."""
    from .random_models import SPEECH_CASES, Pair, save_speech

    pairs: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in pairs:
            folder = tmp_path_factory.mktemp(name)
            pairs[name] = Pair.load(save_speech(SPEECH_CASES[name], folder), folder)
        return pairs[name]

    return get


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The bundled checkpoint."""
    return Path(__file__).parents[2] / "examples" / "tiny-granite-speech"
