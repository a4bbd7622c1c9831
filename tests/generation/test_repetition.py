"""Texts that go round in circles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_speech.generation.repetition import LEAST_TOKENS, find_loop


class TestFindLoop:
    @pytest.mark.parametrize("period", [1, 2, 3, 7, 24])
    @pytest.mark.parametrize("after", [[], [900, 901, 902]])
    def test_loop(self, period, after):
        """It begins to repeat itself after its first round."""
        loop = list(range(100, 100 + period))
        tokens = [1, 2, 3, *(loop * 20), *after]
        assert find_loop(tokens) == 3 + period

    @pytest.mark.parametrize(
        "tokens",
        [
            [],
            [5],
            list(range(200)),
            [8] * (LEAST_TOKENS - 1),  # a telephone number
            [*range(10), *range(10), *range(10), *range(10)],  # a refrain
        ],
    )
    def test_no_loop(self, tokens):
        assert find_loop(tokens) is None

    def test_the_first_of_two(self):
        assert find_loop([7] * 30 + list(range(5)) + [1, 2] * 30) == 1

    @given(st.lists(st.integers(0, 3), max_size=60))
    def test_what_is_before_it_does_not_loop(self, tokens):
        end = find_loop(tokens)
        if end is not None:
            assert 0 < end < len(tokens)
            assert find_loop(tokens[:end]) is None
