"""Beam search, over models small enough to check by hand."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest
from markov import EOS, MarkovModel

from mlx_speech import GenerationConfig
from mlx_speech.generation import beam
from mlx_speech.generation.beam import beam_search
from mlx_speech.layers.cache import reorder_latest


class TestBeams:
    @pytest.mark.parametrize("seed", range(5))
    def test_wide_beam_finds_the_best_of_all(self, seed):
        vocab, limit = 4, 4
        model = MarkovModel(vocab, seed)
        table = np.array(model.table)
        logprobs = table - np.log(np.exp(table).sum(-1, keepdims=True))

        def score(tokens):
            pairs = itertools.pairwise([2, *tokens])
            return sum(logprobs[a, b] for a, b in pairs) / len(tokens)

        answers = [
            [*body, EOS] for n in range(limit) for body in itertools.product([1, 2, 3], repeat=n)
        ] + [list(body) for body in itertools.product([1, 2, 3], repeat=limit)]
        config = GenerationConfig(
            num_beams=64, max_new_tokens=limit, eos_token_id=EOS, early_stopping="never"
        )
        prompt = mx.array([[2]])
        (found,) = beam_search(model.prefill(prompt, config))
        assert found.tokens == max(answers, key=score)
        assert found.score == pytest.approx(score(found.tokens), abs=1e-5)
        assert sum(found.logprobs) / len(found.tokens) == pytest.approx(found.score, abs=1e-5)

    def test_cache_follows_the_beams(self):
        model = MarkovModel(9, seed=5)
        fed = []

        def step(tokens):
            logits = model.feed(tokens)
            fed.append(model.history())
            return logits

        config = GenerationConfig(num_beams=3, max_new_tokens=6)
        prompt = mx.array([[2], [4]])
        rows = beam_search(model.prefill(prompt, config, step))
        final = fed[-1]
        assert [row[0] for row in final] == [2, 2, 2, 4, 4, 4]
        # the winner without its last token is what one of its row's beams had been fed
        for row, hypotheses in zip(rows, (final[:3], final[3:]), strict=True):
            assert row.tokens[:-1] in [h[1:] for h in hypotheses]

    def test_only_what_changes_is_copied(self, monkeypatch):
        """Positions before are the same in the rows that trade places, and one more is not."""
        counts, spared = [], []

        def spy(cache, rows, count):
            for stored in cache[0].stored():
                same = mx.all(stored == stored[rows], axis=(0, 1, 3)).tolist()
                assert all(same[:-count])
                assert not same[-count]
            counts.append(count)
            spared.append(len(same) - count)
            reorder_latest(cache, rows, count)

        monkeypatch.setattr(beam, "reorder_latest", spy)
        model = MarkovModel(9, seed=5)
        prompt = mx.array([[2], [4]])
        config = GenerationConfig(num_beams=3, max_new_tokens=12)
        beam_search(model.prefill(prompt, config))
        assert 1 < len(counts) < model.steps
        assert min(counts) > 0
        assert max(spared) > 3

    def test_batch_equals_single(self):
        config = GenerationConfig(num_beams=3, max_new_tokens=8, eos_token_id=EOS)
        prompts = [1, 2, 3, 4]
        model = MarkovModel(6, seed=11)
        batch = mx.array(prompts)[:, None]
        together = beam_search(model.prefill(batch, config))
        for prompt, row in zip(prompts, together, strict=True):
            model = MarkovModel(6, seed=11)
            single = mx.array([[prompt]])
            (alone,) = beam_search(model.prefill(single, config))
            assert alone.tokens == row.tokens
        assert len({len(row.tokens) for row in together}) > 1

    def test_length_penalty_prefers_longer(self):
        def length(penalty):
            model = MarkovModel(3, seed=0)
            model.table = mx.log(mx.array([[0.4, 0.3, 0.3], [0.45, 0.5, 0.05], [0.4, 0.3, 0.3]]))
            config = GenerationConfig(
                num_beams=4, max_new_tokens=6, eos_token_id=EOS, length_penalty=penalty
            )
            prompt = mx.array([[1]])
            (row,) = beam_search(model.prefill(prompt, config))
            return len(row.tokens)

        assert length(0.0) < length(2.0)
