"""Tokenizers of every kind."""

from __future__ import annotations

import pytest
import small_tokenizers as small
from conftest import TINY

from mlx_speech import LlamaTokenizer, Tokenizer

KINDS = {"llama": small.llama, "llama3": small.llama3, "gpt2": small.gpt2}


@pytest.fixture(params=[*KINDS, "tiny-granite"])
def tokenizer(request, tmp_path) -> Tokenizer:
    make = KINDS.get(request.param, lambda folder: TINY)
    return Tokenizer.from_pretrained(make(tmp_path))


@pytest.fixture
def llama(tmp_path) -> LlamaTokenizer:
    return LlamaTokenizer.from_pretrained(small.llama(tmp_path))
