"""The tokenizer that a folder needs."""

from __future__ import annotations

import pytest
import small_tokenizers as small
from conftest import TINY, TINY_S2T

from mlx_speech import (
    AutoTokenizer,
    CheckpointError,
    LlamaTokenizer,
    Speech2TextTokenizer,
    Tokenizer,
)


def test_kinds(tmp_path):
    for kind, folder in (
        (Speech2TextTokenizer, TINY_S2T),
        (Tokenizer, TINY),
        (Tokenizer, small.gpt2(tmp_path / "gpt2")),
        (LlamaTokenizer, small.llama(tmp_path / "llama")),
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", use_fast=True)
        assert type(tokenizer) is kind
        assert tokenizer.padding_side == "right"
        assert tokenizer.name_or_path == str(folder)


def test_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json and no tokenizer\.model"):
        AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoTokenizer()
