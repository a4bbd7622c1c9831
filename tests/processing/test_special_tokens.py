"""Names, ids and masks of special tokens, and new tokens, in both kinds of tokenizers."""

from __future__ import annotations

import pytest
import small_tokenizers as small
from conftest import TINY_S2T
from tokenizers import AddedToken

from mlx_speech import AutoTokenizer, InputError

KINDS = {"llama": small.llama, "gpt2": small.gpt2, "s2t": lambda folder: TINY_S2T}


@pytest.fixture(params=KINDS)
def tokenizer(request, tmp_path):
    return AutoTokenizer.from_pretrained(KINDS[request.param](tmp_path))


def test_one_and_several(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(["a", "b"])
    assert tokenizer.convert_tokens_to_ids("a") == ids[0]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == "a"
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "b"]
    special = [tokenizer.eos_token_id, *ids]
    assert tokenizer.convert_ids_to_tokens(special, skip_special_tokens=True) == ["a", "b"]


def test_masks(tokenizer):
    text = tokenizer("one two", return_tensors=None, return_special_tokens_mask=True)
    inner = tokenizer.encode("one two", add_special_tokens=False)
    assert tokenizer.build_inputs_with_special_tokens(inner) == text["input_ids"]
    assert tokenizer.get_special_tokens_mask(inner) == text["special_tokens_mask"]
    assert tokenizer.get_special_tokens_mask([tokenizer.eos_token_id, inner[0]], None, True) == [
        1,
        0,
    ]
    kinds = tokenizer.create_token_type_ids_from_sequences(inner, inner)
    assert len(kinds) == len(tokenizer.build_inputs_with_special_tokens(inner, inner))
    assert kinds == sorted(kinds)
    assert sum(kinds) >= len(inner)
    count = tokenizer.num_special_tokens_to_add()
    assert count == len(text["input_ids"]) - len(inner)
    with pytest.raises(InputError, match="cannot be a second text"):
        tokenizer.get_special_tokens_mask(inner, inner, already_has_special_tokens=True)


def test_new_tokens(tokenizer):
    size, base = len(tokenizer), tokenizer.vocab_size
    wide = AddedToken("<wide>", lstrip=True, rstrip=True)
    assert tokenizer.add_tokens(["<new>", wide, "<new>"]) == 2
    assert tokenizer.add_tokens("<new>") == 0
    assert (len(tokenizer), tokenizer.vocab_size) == (size + 2, base)
    assert tokenizer.get_added_vocab()["<wide>"] == size + 1
    spaced = tokenizer.encode("a <wide> b<new>", add_special_tokens=False)
    assert spaced == tokenizer.encode("a<wide>b<new>", add_special_tokens=False)
    assert {size, size + 1} < set(spaced)
    ids = tokenizer.convert_tokens_to_ids(["<new>", "<wide>"])
    assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == [0, 0]
    for token in (5, "", None):
        with pytest.raises(InputError, match="tokens have to be text or AddedToken"):
            tokenizer.add_tokens([token])


def test_named_tokens(tokenizer):
    size = len(tokenizer)
    filler = AddedToken("<filler>", lstrip=True)
    assert tokenizer.add_special_tokens({"pad_token": filler, "mask_token": "<mask>"}) == 2
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<filler>", size)
    assert tokenizer.special_tokens_map["mask_token"] == "<mask>"
    assert tokenizer.decode([size], skip_special_tokens=False) == "<filler>"
    assert tokenizer.decode([size], skip_special_tokens=True) == ""
    tokenizer.pad_token_id = tokenizer.eos_token_id
    assert tokenizer.pad_token == tokenizer.eos_token
    tokenizer.pad_token = filler
    assert tokenizer.pad_token_id == size
    for index in (99999, -1, "x", 1.5):
        with pytest.raises(InputError, match="pad_token_id is"):
            tokenizer.pad_token_id = index
    assert tokenizer.pad_token_id == size


def test_further_tokens(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>", "<y>"]})
    assert tokenizer.extra_special_tokens == tokenizer.additional_special_tokens == ["<x>", "<y>"]
    more = {"extra_special_tokens": ["<y>", "<z>"]}
    tokenizer.add_special_tokens(more, replace_extra_special_tokens=False)
    assert tokenizer.extra_special_tokens == ["<x>", "<y>", "<z>"]
    tokenizer.add_special_tokens({"extra_special_tokens": ["<q>"]})
    assert tokenizer.extra_special_tokens == ["<q>"]
    assert tokenizer.extra_special_tokens_ids == [len(tokenizer) - 1]
    assert tokenizer.all_special_tokens[-1] == "<q>"
    with pytest.raises(InputError, match="extra_special_tokens is '<x>', but must be a list"):
        tokenizer.add_special_tokens({"extra_special_tokens": "<x>"})
