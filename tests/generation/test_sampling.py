"""What is drawn, and from what: temperature, truncation, penalties, seeds."""

from __future__ import annotations

import threading

import mlx.core as mx
import numpy as np
import pytest
from markov import MarkovModel, run_search

from mlx_speech import GenerationConfig
from mlx_speech.generation.sampling import make_sampler, truncate


class TestSampling:
    def test_seed_repeats_and_differs(self):
        def draw(seed):
            config = GenerationConfig(max_new_tokens=20, temperature=1.5, seed=seed)
            return [s.tokens for s in run_search(MarkovModel(50, seed=1), [3, 4], config)]

        assert draw(7) == draw(7)
        assert draw(7) != draw(8)
        assert draw(None) != draw(None)

    @pytest.mark.parametrize(("seed", "different"), [(None, 3), (7, 1)])
    def test_threads_draw_for_themselves(self, seed, different):
        """MLX's state is the same at the beginning of each thread."""
        config, drawn = GenerationConfig(temperature=1.0, seed=seed), []

        def draw():
            drawn.append(tuple(make_sampler(config)(mx.zeros((40, 50))).tolist()))
            mx.clear_streams()

        for _ in range(3):
            thread = threading.Thread(target=draw)
            thread.start()
            thread.join()
        assert (len(drawn), len({*drawn})) == (3, different)

    def test_seed_of_mlx_repeats_in_the_main_thread(self):
        def draw():
            mx.random.seed(5)
            return make_sampler(GenerationConfig(temperature=1.0))(mx.zeros((40, 50))).tolist()

        assert draw() == draw()

    def test_sampling_follows_the_distribution(self):
        probabilities = mx.array([0.5, 0.3, 0.15, 0.05])
        logits = mx.broadcast_to(mx.log(probabilities), (20000, 4))
        drawn = make_sampler(GenerationConfig(temperature=1.0, seed=3))(logits)
        counts = np.bincount(np.array(drawn), minlength=4) / 20000
        np.testing.assert_allclose(counts, probabilities, atol=0.015)

    @pytest.mark.parametrize(
        ("options", "kept"),
        [
            ({"top_k": 2}, [0, 1]),
            ({"top_p": 0.79}, [0, 1]),
            ({"top_p": 0.81}, [0, 1, 2]),
            ({"top_p": 0.01}, [0]),
            ({"min_p": 0.25}, [0, 1, 2]),
            ({"top_k": 3, "min_p": 0.5}, [0, 1]),
        ],
    )
    def test_truncation(self, options, kept):
        logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
        left = np.isfinite(
            np.array(truncate(logits, GenerationConfig(do_sample=True, **options))[0])
        )
        assert np.flatnonzero(left).tolist() == kept

    def test_temperature_sharpens_before_truncation(self):
        logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
        config = GenerationConfig(temperature=0.25, top_p=0.85)
        assert np.isfinite(np.array(truncate(logits, config))).sum() == 1

    def test_repetition_penalty(self):
        model = MarkovModel(3, seed=0)
        model.table = mx.array([[2.0, 1.9, -5.0]] * 3)
        plain = run_search(model, [0], GenerationConfig(max_new_tokens=3))
        assert [s.tokens[0] for s in plain] == [0, 0, 0]
        config = GenerationConfig(max_new_tokens=3, repetition_penalty=1.5)
        penalised = run_search(model, [0], config)
        assert [s.tokens[0] for s in penalised] == [1, 0, 0]
