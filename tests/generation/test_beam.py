"""Beam search, over models small enough to check by hand."""

from __future__ import annotations

import dataclasses
import itertools

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_decoder
from markov import EOS, MarkovModel

from mlx_speech import GenerationConfig
from mlx_speech.generation import beam
from mlx_speech.generation.beam import beam_search
from mlx_speech.generation.outputs import ScoreRecord
from mlx_speech.layers.cache import LatestPositions


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

    def test_only_what_differs_is_copied(self, monkeypatch):
        """Positions before are the same in all beams of a prompt, and one more is not."""
        counts, spared = [], []

        def spy(cache, count):
            beams = cache[0].stored()[0].reshape(2, 3, -1)
            same = mx.all(beams == beams[:, :1], axis=(0, 1)).tolist()
            assert all(same[: len(same) - count])
            assert count == 0 or not same[-count]
            counts.append(count)
            spared.append(len(same) - count)
            return LatestPositions(cache, count)

        monkeypatch.setattr(beam, "LatestPositions", spy)
        model = MarkovModel(9, seed=0)
        prompt = mx.array([[2], [4]])
        config = GenerationConfig(num_beams=3, max_new_tokens=12)
        beam_search(model.prefill(prompt, config))
        assert counts[:2] == [0, 1]
        assert len(counts) == 11
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


#: kinds of caches; some answers begin before a kind's bound is reached and end behind it
CACHES = [
    {},
    {"kv_bits": 8, "kv_group_size": 32},
    {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 8},
    {"max_kv_size": 8},
]


class TestAheadOfPython:
    def test_next_step_is_fed_before_candidates_are_read(self, monkeypatch):
        """Nothing waits for the device in between."""
        events = []
        read = mx.array.tolist
        model = MarkovModel(9, seed=5)

        def step(tokens):
            events.append("fed")
            return model.feed(tokens)

        config = GenerationConfig(num_beams=3, max_new_tokens=6, eos_token_id=EOS)
        run = model.prefill(mx.array([[2], [4]]), config, step)
        for name in ("tolist", "item"):
            monkeypatch.setattr(mx.array, name, lambda a: events.append("read") or read(a))
        monkeypatch.setattr(mx, "eval", lambda *_: events.append("waited"))
        beam_search(run)
        assert [event for event, _ in itertools.groupby(events)] == ["fed", "read"] * 5

    def test_no_step_is_done_over_for_end_tokens(self, monkeypatch):
        """Nor for rows that are done, while others go on; the one beyond the end is forgotten."""
        guesses = []

        def spy(cache, count):
            guesses.append(model.history())
            return LatestPositions(cache, count)

        monkeypatch.setattr(beam, "LatestPositions", spy)
        config = GenerationConfig(
            num_beams=3, max_new_tokens=20, eos_token_id=[EOS, 1], early_stopping=True
        )
        model = MarkovModel(6, seed=18)
        run = model.prefill(mx.array([[2], [3], [4], [5]]), config)
        run = dataclasses.replace(run, record=ScoreRecord([], []))
        rows = beam_search(run)
        assert len({len(row.tokens) for row in rows}) > 1
        assert len(guesses) < 19
        assert model.steps == 1 + len(guesses)
        assert model.history() == guesses[-1]
        # the beams of a row that is done stay where they are; others are fed no end token
        beams = [pair for two in itertools.pairwise(guesses) for pair in zip(*two, strict=True)]
        kept = [before == after[:-1] for before, after in beams if after[-1] == EOS]
        assert all(kept)
        assert len(kept) > 3
        assert len(run.record.scores) == len(run.record.logits) == len(guesses)

    @pytest.mark.parametrize("cache", CACHES, ids=str)
    def test_wrong_guesses_change_nothing(self, cache, monkeypatch):
        """Answers, scores, records, the cache, and what processors see at last."""
        model = random_decoder(head_dim=32)
        ids = mx.array([[7, 8, 9], [3, 5, 11]])

        def answer():
            seen = {}
            output = model.generate(
                ids,
                num_beams=4,
                num_return_sequences=4,
                max_new_tokens=9,
                eos_token_id=[],
                logits_processor=lambda ids, s: seen.update({ids.shape[1]: ids.tolist()}) or s,
                return_dict_in_generate=True,
                output_scores=True,
                output_logits=True,
                **cache,
            )
            return output, seen

        expected, seen = answer()
        right = beam.Candidates.expected

        def wrong(candidates, done):
            return tuple(part[:, ::-1] for part in right(candidates, done))

        monkeypatch.setattr(beam.Candidates, "expected", wrong)
        found, seen_again = answer()
        assert seen_again == seen
        for name in ("sequences", "sequences_scores", "beam_indices"):
            assert mx.array_equal(found[name], expected[name]).item()
        for name in ("scores", "logits"):
            assert len(found[name]) == 9
            pairs = zip(found[name], expected[name], strict=True)
            assert all(mx.array_equal(*pair).item() for pair in pairs)
        for layer, other in zip(found.past_key_values, expected.past_key_values, strict=True):
            assert layer.length == other.length == 11
            pairs = zip(layer.stored(), other.stored(), strict=True)
            assert all(mx.array_equal(*pair).item() for pair in pairs)

    @pytest.mark.parametrize("cache", CACHES, ids=str)
    @pytest.mark.parametrize("prompt", [7, 8, 9])
    def test_criterion_ends_as_an_end_token_does(self, prompt, cache, monkeypatch):
        """The device knows of the token only; steps are done over for the criterion."""
        model = random_decoder(head_dim=32)
        steps = []
        original = LatestPositions.reorder

        def spy(latest, rows):
            steps.append(rows)
            original(latest, rows)

        monkeypatch.setattr(LatestPositions, "reorder", spy)

        def answer(**ending):
            steps.clear()
            options = {"num_beams": 3, "max_new_tokens": 16, "pad_token_id": 1, **cache, **ending}
            options |= {"return_dict_in_generate": True, "output_scores": True}
            return model.generate(mx.array([[prompt, 5, 30]]), **options), len(steps)

        common = answer(eos_token_id=[])[0].sequences[0, 5].item()
        expected, few = answer(eos_token_id=[common])
        found, many = answer(
            eos_token_id=[], stopping_criteria=lambda ids, scores: ids[:, -1] == common
        )
        assert many > few
        for name in ("sequences", "sequences_scores", "beam_indices"):
            assert mx.array_equal(found[name], expected[name]).item()
        pairs = zip(found.scores, expected.scores, strict=True)
        assert all(mx.array_equal(*pair).item() for pair in pairs)
        for layer, other in zip(found.past_key_values, expected.past_key_values, strict=True):
            pairs = zip(layer.stored(), other.stored(), strict=True)
            assert all(mx.array_equal(*pair).item() for pair in pairs)
