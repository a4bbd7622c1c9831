"""What changes the scores of the next token, worked out by hand."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest

from mlx_speech import GenerationConfig
from mlx_speech.generation.processors import logits_processors

VOCAB = 6


def allowed(tokens: list[list[int]], prompt: int = 1, padding=None, **options) -> list[list[int]]:
    """Of even scores, which ids stay possible in each row."""
    config = GenerationConfig(max_new_tokens=5, **options).limited(prompt)
    scores = mx.zeros((len(tokens), VOCAB))
    for process in logits_processors(config, prompt, VOCAB, padding):
        scores = process(mx.array(tokens, mx.int32), scores)
    return [[i for i, s in enumerate(row) if s != -math.inf] for row in scores.tolist()]


@pytest.mark.parametrize(
    ("options", "tokens", "expected"),
    [
        ({"no_repeat_ngram_size": 2}, [1, 2, 3, 1], [0, 1, 3, 4, 5]),
        ({"no_repeat_ngram_size": 2}, [1, 2, 1, 3, 1], [0, 1, 4, 5]),
        ({"no_repeat_ngram_size": 3}, [1, 2, 3, 1], [0, 1, 2, 3, 4, 5]),
        ({"no_repeat_ngram_size": 3}, [1, 2, 3, 1, 2], [0, 1, 2, 4, 5]),
        ({"no_repeat_ngram_size": 1}, [1, 2], [0, 3, 4, 5]),
        ({"no_repeat_ngram_size": 3}, [1], [0, 1, 2, 3, 4, 5]),
        ({"bad_words_ids": [[4], [1, 2]]}, [3, 1], [0, 1, 3, 5]),
        ({"bad_words_ids": [[4], [1, 2]]}, [3, 2], [0, 1, 2, 3, 5]),
        ({"bad_words_ids": [[4], [3, 1, 2], [1, 0]]}, [3, 1], [1, 3, 5]),
        ({"bad_words_ids": [[1, 2, 3]]}, [2], [0, 1, 2, 3, 4, 5]),
        ({"bad_words_ids": [[5], [4]], "eos_token_id": 5}, [3], [0, 1, 2, 3, 5]),
        ({"suppress_tokens": [0, 5]}, [3, 1], [1, 2, 3, 4]),
        ({"begin_suppress_tokens": [0, 5]}, [3], [1, 2, 3, 4]),
        ({"begin_suppress_tokens": [0, 5]}, [3, 1], [0, 1, 2, 3, 4, 5]),
        ({"begin_suppress_tokens": [0], "forced_bos_token_id": 2}, [3], [2]),
        ({"begin_suppress_tokens": [0], "forced_bos_token_id": 2}, [3, 2], [1, 2, 3, 4, 5]),
        ({"min_new_tokens": 2, "eos_token_id": [5, 99]}, [3, 1], [0, 1, 2, 3, 4]),
        ({"min_new_tokens": 2, "eos_token_id": 5}, [3, 1, 1], [0, 1, 2, 3, 4, 5]),
        ({"min_length": 3, "eos_token_id": 5}, [3, 1], [0, 1, 2, 3, 4]),
        ({"forced_eos_token_id": [4, 5]}, [3, 1, 1, 1, 1], [4, 5]),
        ({"forced_eos_token_id": 4}, [3, 1, 1, 1], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_what_stays_possible(options, tokens, expected):
    assert allowed([tokens], **options) == [expected]


def test_each_row_for_itself():
    rows = allowed([[1, 2, 1], [2, 1, 1]], no_repeat_ngram_size=2, bad_words_ids=[[1, 1, 0]])
    assert rows == [[0, 1, 3, 4, 5], [2, 3, 4, 5]]


def test_penalties_do_not_see_padding():
    config = GenerationConfig(repetition_penalty=2.0).limited(3)
    (process,) = logits_processors(config, 3, VOCAB, padding=[2, 0])
    tokens = mx.array([[5, 5, 1], [5, 5, 1]])
    assert process(tokens, mx.ones((2, VOCAB))).tolist() == [
        [1, 0.5, 1, 1, 1, 1],
        [1, 0.5, 1, 1, 1, 0.5],
    ]
    # two beams of each
    beams = process(mx.repeat(tokens, 2, axis=0), mx.ones((4, VOCAB)))
    assert [row[5] for row in beams.tolist()] == [1, 1, 0.5, 0.5]


@pytest.mark.parametrize("options", [{"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 1}])
def test_a_token_of_the_prompt_beyond_the_scores_is_none(options):
    """As that of audio is in the released checkpoints: in memory the next row begins there."""
    config = GenerationConfig(max_new_tokens=5, **options).limited(2)
    (process,) = logits_processors(config, 2, VOCAB)
    beyond, within = process(mx.array([[VOCAB, 1], [2, 2]]), mx.ones((2, VOCAB))).tolist()
    changed = [[i for i, score in enumerate(row) if score != 1] for row in (beyond, within)]
    assert changed == [[1], [2]]
