"""Conversations with a Qwen3 that mlx-lm runs, beside the one that transformers runs."""

from __future__ import annotations

import make_chat_model as qwen3
import mlx.core as mx
import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from mlx_speech import ChatSession
from mlx_speech.chat_session.chat_model import load_chat_model


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, {}),
        (30, {}),
        (2, {"repetition_penalty": 1.4}),
        (3, {"no_repeat_ngram_size": 2}),
        (4, {"suppress_tokens": [0, 2], "min_new_tokens": 8}),
    ],
    ids=str,
)
def test_replies(seed, options, tiny, tmp_path):
    """Each turn goes on from the cache, where transformers reads the whole conversation."""
    text = AutoTokenizer.from_pretrained(qwen3.FOLDER)
    qwen3.model(len(text), seed).save_pretrained(tmp_path)
    text.save_pretrained(tmp_path)
    reference = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    turns = qwen3.conversation(reference, text, **options)
    chat_model = load_chat_model(tmp_path, dtype=mx.float32)
    session = ChatSession(*tiny, chat_model=chat_model, max_new_tokens=qwen3.NEW_TOKENS, **options)
    for turn in turns:
        responses = list(session.stream(turn["said"]))
        assert [r.token for r in responses] == turn["ids"]
        assert "".join(r.text for r in responses) == turn["reply"]


def test_the_bundled_one_is_what_the_script_makes():
    weights = qwen3.model(96).state_dict()
    kept = Qwen3ForCausalLM.from_pretrained(qwen3.FOLDER).state_dict()
    assert weights.keys() == kept.keys()
    assert all((weights[name] == kept[name]).all() for name in kept)
