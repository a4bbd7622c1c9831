"""Token ids as callers give them."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech.errors import InputError
from mlx_speech.layers.token_ids import as_mlx, check_array, check_token_ids


class Tensor:
    """An array of another library."""

    def __array__(self, dtype=None, copy=None):
        return np.array([[1, 2]], ">i8")


@pytest.mark.parametrize("ids", [mx.array([[1, 2]]), np.array([[1, 2]]), Tensor()])
def test_any_array(ids):
    assert check_token_ids(ids, 3).tolist() == [[1, 2]]


def test_what_is_no_array_stays():
    assert as_mlx([1]) == [1]


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None])])
def test_arrays_of_no_numbers(array):
    with pytest.raises(InputError, match="holds no numbers"):
        as_mlx(array)


def test_shapes():
    """Any length but zero where an axis has a name."""
    shapes = ("rows", 2), (3,)
    for shape in ((1, 2), (7, 2), (3,)):
        assert check_array(np.ones(shape), "x", mx.floating, *shapes).shape == shape
    for shape in ((0, 2), (2, 3), (1, 2, 2), (2,)):
        with pytest.raises(InputError, match=r"but must be an array \(rows, 2\) or \(3\)"):
            check_array(np.ones(shape), "x", mx.floating, *shapes)
    with pytest.raises(InputError, match="int64, but must be floats"):
        check_array(np.ones(3, int), "x", mx.floating, *shapes)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1]], "x are list, but must be an array"),
        (mx.array([1]), r"x are \(1,\), but must be an array \(batch, length\); one text alone"),
        (mx.zeros((1, 0), mx.int32), r"x are \(1, 0\)"),
        (mx.zeros((1, 1)), "x are mlx.core.float32, but must be integers"),
        (mx.array([[2, 3]]), "x hold 3, the model knows 0 to 2; .*resize_token_embeddings"),
        (mx.array([[2, -1]]), "x hold -1, "),
    ],
)
def test_what_is_refused(ids, message):
    with pytest.raises(InputError, match=message):
        check_token_ids(ids, 3, "x")


def test_what_does_not_count():
    assert check_token_ids(mx.array([[-100, 2]]), 3, ignored=-100).tolist() == [[-100, 2]]
    with pytest.raises(InputError, match="hold -99, the model knows 0 to 2, and -100 for what"):
        check_token_ids(mx.array([[-99, -100]]), 3, ignored=-100)
