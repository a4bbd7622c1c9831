"""Token ids as callers have them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech import InputError
from mlx_speech.processing.batch import as_ids


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (7, [7]),
        (np.int64(7), [7]),
        (7.0, [7]),
        ([1, np.int32(2), mx.array(3), 4.0], [1, 2, 3, 4]),
        (range(3), [0, 1, 2]),
        (np.array([1, 2])[::-1], [2, 1]),
        (mx.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ([mx.array([1, 2]), [3]], [[1, 2], [3]]),
        ([], []),
    ],
    ids=str,
)
def test_taken(given, expected):
    assert as_ids(given) == expected


@pytest.mark.parametrize("given", ["17", b"17", None, [None], [1, "2"], [1.5], {1: 2}, [True]])
def test_refused(given):
    with pytest.raises(InputError, match=r"^ids is .*, but must be a list in which each"):
        as_ids(given)


@pytest.mark.parametrize("given", [5, [{"input_ids": [1]}, {}], {"input_ids": [[2**40]]}])
def test_what_cannot_be_padded(tiny, given):
    with pytest.raises(InputError):
        tiny[1].tokenizer.pad(given)


@pytest.mark.parametrize("model", ["tiny", "tiny_s2t"])
def test_rows_of_tokens_and_ids(request, model):
    """As deep as they are nested, where that makes sense."""
    processor = request.getfixturevalue(model)[1]
    tokenizer = processor.tokenizer
    found, other = tokenizer.convert_tokens_to_ids("a"), tokenizer.convert_tokens_to_ids("b")
    assert found != other
    assert tokenizer.convert_tokens_to_ids([["a", "b"], ["b"]]) == [[found, other], [other]]
    assert tokenizer.decode([[found, other], [other]]) == ["ab", "b"]
    assert tokenizer.convert_ids_to_tokens(np.array([found, other])) == ["a", "b"]
    with pytest.raises(InputError, match=r"ids is \[\[1\]\], but must be a list in which each"):
        tokenizer.convert_ids_to_tokens([[1]])
    for token in (5, None, [5], {"a": 1}):
        with pytest.raises(InputError, match="a token is text, not"):
            tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize("model", ["tiny", "tiny_s2t"])
def test_an_option_that_a_call_does_not_have(request, model):
    tokenizer = request.getfixturevalue(model)[1].tokenizer
    with pytest.raises(InputError, match=r"has no option max_len, but .*max_length, .*padding"):
        tokenizer("a", max_len=5)
