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
