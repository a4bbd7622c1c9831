"""Greedy search and sampling step by step, over models small enough to check by hand."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from markov import MarkovModel, run_search

from mlx_speech import GenerationConfig
from mlx_speech.generation.search import search


class TestSearch:
    def test_greedy_follows_the_likeliest(self):
        model = MarkovModel(7, seed=1)
        steps = run_search(model, [3], GenerationConfig(max_new_tokens=5))
        token, table = 3, np.array(model.table)
        for step in steps:
            logits = table[token]
            token = int(logits.argmax())
            assert step.tokens == [token]
            expected = logits[token] - math.log(np.exp(logits).sum())
            assert step.logprobs[0] == pytest.approx(expected, abs=1e-5)
        assert len(steps) == 5

    def test_next_step_is_dispatched_before_the_last_is_read(self, monkeypatch):
        dispatched = []
        monkeypatch.setattr(mx, "async_eval", lambda *arrays: dispatched.append(len(arrays)))
        model = MarkovModel(7, seed=1)
        prompt = mx.array([[3]])
        steps = search(model.prefill(prompt, GenerationConfig(max_new_tokens=3)))
        next(steps)
        assert len(dispatched) == 2
        assert model.steps == 2
        next(steps)
        next(steps)
        assert model.steps == 3  # nothing is computed beyond the last token

    def test_rows_end_on_any_eos_and_are_filled(self):
        model = MarkovModel(4, seed=0)
        model.table = mx.array([[0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9], [9, 0, 0, 0.0]])
        config = GenerationConfig(max_new_tokens=9, eos_token_id=[2, 0], pad_token_id=77)
        steps = run_search(model, [3, 2, 1], config)
        assert [s.tokens for s in steps] == [[0, 3, 2], [77, 0, 77]]
        assert [s.ended for s in steps] == [[False] * 3, [True, False, True]]
