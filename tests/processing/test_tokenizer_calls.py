"""Tokenizers of every kind, without transformers."""

from __future__ import annotations

from threading import Thread

import pytest
import small_tokenizers as small

from mlx_speech import (
    InputError,
)

TEXTS = small.random_texts(300, seed=7)


class TestCalls:
    def test_lists(self, llama):
        encoded = llama(["the lazy dog", "dog"], return_tensors=None)
        assert encoded["input_ids"] == [llama.encode("the lazy dog"), llama.encode("dog")]
        assert llama("dog", return_tensors=None)["input_ids"] == llama.encode("dog")
        assert llama.encode("dog", return_tensors="mlx").tolist() == [llama.encode("dog")]

    def test_cut(self, llama):
        ids = llama.encode("the lazy dog")
        assert llama.encode("the lazy dog", max_length=3) == ids[:3]
        llama.truncation_side = "left"
        assert llama.encode("the lazy dog", max_length=3, truncation=True) == [1, *ids[-2:]]
        assert llama.encode("the lazy dog") == ids
        llama.truncation_side = "top"
        with pytest.raises(InputError, match="truncation_side is 'top'"):
            llama.encode("the lazy dog", max_length=3)
        llama.truncation_side = "right"
        with pytest.raises(InputError, match=r"stride is 5, but must be below 2"):
            llama("the lazy dog", max_length=3, stride=5)
        rows = llama("the lazy dog", max_length=3, return_overflowing_tokens=True)
        assert rows.overflow_to_sample_mapping.tolist() == [0] * rows.input_ids.shape[0]
        assert [i for row in rows.input_ids.tolist() for i in row if i > 2] == ids[1:]

    def test_pairs(self, llama):
        one, two = llama.encode("dog"), llama.encode("the fox")
        assert llama.encode("dog", "the fox") == one + two
        batch = llama(["dog"], ["the fox"], return_token_type_ids=True)
        assert batch.token_type_ids.tolist() == [[0] * len(one) + [1] * len(two)]
        assert llama([("dog", "the fox")]).input_ids.tolist() == [one + two]
        with pytest.raises(InputError, match="as many texts as text"):
            llama(["dog", "fox"], ["the fox"])

    def test_targets(self, llama):
        inputs = llama("dog", text_target="the fox", max_target_length=2)
        assert inputs.labels.tolist() == [llama.encode("the fox")[:2]]
        assert inputs.input_ids.tolist() == [llama.encode("dog")]

    def test_special_tokens_in_a_text(self, llama):
        ids = llama.encode("a</s>", split_special_tokens=True, add_special_tokens=False)
        assert 2 not in ids
        assert 2 in llama.encode("a</s>")
        llama.split_special_tokens = True
        assert llama.encode("a</s>", add_special_tokens=False) == ids

    def test_threads_do_not_share_how_to_cut(self, llama):
        whole, cut = llama.encode(TEXTS[0]), llama.encode(TEXTS[0], max_length=4)
        found = set()

        def work(**options):
            for _ in range(200):
                found.add(tuple(llama.encode(TEXTS[0], **options)))

        threads = [Thread(target=work), Thread(target=work, kwargs={"max_length": 4})]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {tuple(whole), tuple(cut)}

    @pytest.mark.parametrize(("pair", "room"), [(None, 5), ("the dog", 2)])
    def test_a_stride_without_room(self, llama, pair, room):
        options = {"truncation": True, "max_length": 6, "return_overflowing_tokens": True}
        with pytest.raises(InputError, match=f"stride is {room}, but must be below {room}, the"):
            llama("the lazy dog sleeps under the tree", pair, stride=room, **options)
        assert llama("the lazy dog sleeps", pair, stride=room - 1, **options)
