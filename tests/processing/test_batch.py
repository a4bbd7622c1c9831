"""Token ids as callers have them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_speech import BatchEncoding, InputError, UnsupportedOptionError
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
    with pytest.raises(InputError, match=r"^ids is .*, but must be an integer, a row"):
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
    assert tokenizer.decode([[found, other], [other]], skip_special_tokens=True) == ["ab", "b"]
    assert tokenizer.convert_ids_to_tokens(np.array([found, other])) == ["a", "b"]
    with pytest.raises(InputError, match=r"ids is \[\[1\]\], but must be a single row"):
        tokenizer.convert_ids_to_tokens([[1]])
    for token in (5, None, [5], {"a": 1}):
        with pytest.raises(InputError, match="a token is text, not"):
            tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize("model", ["tiny", "tiny_s2t"])
def test_an_option_that_a_call_does_not_have(request, model):
    tokenizer = request.getfixturevalue(model)[1].tokenizer
    with pytest.raises(InputError, match=r"has no option max_len, but .*max_length, .*padding"):
        tokenizer("a", max_len=5)


class TestBatchEncoding:
    def test_items(self):
        batch = BatchEncoding({"input_ids": [[1, 2], [3, 4]]}, labels=[[5, 6], [7, 8]])
        assert batch.labels is batch["labels"] is batch.data["labels"]
        assert batch[:1] == {"input_ids": [[1, 2]], "labels": [[5, 6]]}
        assert not batch.is_fast
        with pytest.raises(KeyError):
            batch[0]
        with pytest.raises(UnsupportedOptionError, match="no words or characters"):
            batch.tokens()

    def test_arrays(self):
        batch = BatchEncoding({"input_ids": [1, 2], "empty": []}, tensor_type="pt")
        assert (batch.input_ids.dtype, batch.empty.dtype) == (mx.int32, mx.int32)
        batch = BatchEncoding({"input_ids": [1, 2]})
        assert batch.convert_to_tensors() is batch
        assert batch.convert_to_tensors("np", prepend_batch_axis=True).input_ids.shape == (1, 2)
        with pytest.raises(InputError, match=r"^a are .* differ in length: .* needs padding$"):
            BatchEncoding({"a": [[1], [2, 3]]}, tensor_type="mlx")

    def test_to(self):
        made = {"ids": mx.array([1]), "features": mx.array([1.5]), "texts": ["a"]}
        batch = BatchEncoding(made)
        for devices in (("cuda",), (mx.gpu,), (0,), ("cpu:0",), (mx.Device(mx.cpu, 0),)):
            assert batch.to(*devices) is batch
            assert batch.features.dtype == mx.float32
        for targets in ((mx.float16,), ("mps", "bfloat16"), (np.dtype("float16"),)):
            expected = mx.bfloat16 if "bfloat16" in targets else mx.float16
            assert batch.to(*targets).features.dtype == expected
        assert batch.to("cuda", dtype=mx.float32, non_blocking=True).features.dtype == mx.float32
        assert (batch.ids.dtype, batch.texts) == (mx.int32, ["a"])
        for refused in ({"dtype": "float64"}, {"dtype": "big"}, {"dtype": mx.int32}):
            with pytest.raises(UnsupportedOptionError, match="can be cast to float32, float16"):
                batch.to(**refused)
        with pytest.raises(UnsupportedOptionError, match="float64"):
            batch.to("float64")
        with pytest.raises(UnsupportedOptionError, match="not to 'nowhere'"):
            batch.to("nowhere")
        with pytest.raises(InputError, match="no option copy"):
            batch.to("cpu", copy=True)

    def test_where_tokens_stand(self, tiny):
        batch = tiny[1].tokenizer(["the light", "set the light"], padding_side="right")
        assert (batch.is_fast, batch.n_sequences) == (True, 1)
        text = "set the light"
        for index, token in enumerate(batch.tokens(1)):
            start, end = batch.token_to_chars(1, token_index=index)
            assert token.replace("Ġ", " ").strip() == text[start:end].strip()
            assert batch.char_to_token(1, end - 1) == index
        assert batch.token_to_chars(1).start == batch[0].token_to_chars(1)[0]
        first = batch.word_to_chars(0, 0)
        assert batch.char_to_word(0, first.start) == 0
        assert batch.word_to_tokens(0, 0).start == 0
        assert len(batch.word_ids(1)) == batch.input_ids.shape[1]
        with pytest.raises(InputError, match="no row 2 in a batch of 2"):
            batch.tokens(2)
        with pytest.raises(InputError, match=r"token_to_word\(0, -1\)"):
            batch.token_to_word(-1)
