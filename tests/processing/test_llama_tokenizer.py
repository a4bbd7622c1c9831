"""Llama 2's tokenizer of a vocabulary and of files, without transformers."""

from __future__ import annotations

import json

import pytest
import small_tokenizers as small
from tokenizers import AddedToken

from mlx_speech import (
    CheckpointError,
    InputError,
    LlamaTokenizer,
    LlamaTokenizerFast,
    UnsupportedOptionError,
)

VOCAB = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "ab": 6, "▁ab": 7}
MERGES = [("a", "b"), ("▁", "ab")]
CLEAN = "clean_up_tokenization_spaces"


def test_vocabulary():
    tokenizer = LlamaTokenizer(VOCAB, MERGES)
    assert tokenizer.encode("ab a") == [1, 7, 3, 4]
    assert tokenizer.decode([1, 7, 3, 4], skip_special_tokens=True) == "ab a"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert (tokenizer.legacy, tokenizer.add_prefix_space) == (False, True)
    assert LlamaTokenizerFast is LlamaTokenizer


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"add_bos_token": False, "add_eos_token": True}, [7, 2, 6, 2]),
        ({"add_prefix_space": False}, [1, 6, 2, 6]),
        ({"legacy": True}, [1, 7, 2, 7]),
        ({"bos_token": AddedToken("ab", special=True)}, [6, 6, 2, 6]),
        ({"bos_token": None}, [7, 2, 6]),
    ],
    ids=str,
)
def test_options(options, ids):
    assert LlamaTokenizer(VOCAB, MERGES, **options).encode("ab</s>ab")[: len(ids)] == ids


def test_nothing():
    tokenizer = LlamaTokenizer(pad_token=AddedToken("<pad>", lstrip=True))
    assert tokenizer.get_vocab() == {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
    assert tokenizer.pad_token_id == 3
    assert tokenizer.added_tokens_decoder[3].lstrip


def test_files(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n▁ ab\n")
    made = LlamaTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert made.encode("ab a") == [1, 7, 3, 4]
    ids = LlamaTokenizer.from_pretrained(small.llama(tmp_path / "llama")).encode("the dog")
    for options in ({"vocab_file": small.LLAMA_MODEL}, {"vocab": str(small.LLAMA_MODEL)}):
        assert LlamaTokenizer(**options).encode("the dog") == ids
    with pytest.raises(CheckpointError, match=r"none\.model: no such file"):
        LlamaTokenizer(vocab_file=tmp_path / "none.model")
    with pytest.raises(CheckpointError, match=r"not a readable vocabulary with .*none\.txt"):
        LlamaTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "none.txt"))


def test_refused():
    with pytest.raises(UnsupportedOptionError, match="sp_model_kwargs"):
        LlamaTokenizer(VOCAB, MERGES, sp_model_kwargs={"enable_sampling": True})
    with pytest.raises(InputError, match="no option pad, but add_bos_token"):
        LlamaTokenizer(VOCAB, MERGES, pad="<pad>")
    with pytest.raises(InputError, match="vocab is"):
        LlamaTokenizer({"a": "b"}, MERGES)
    with pytest.raises(InputError, match="merges is a path"):
        LlamaTokenizer(VOCAB, "merges.txt")
    with pytest.raises(CheckpointError, match="vocab: not a readable tokenizer"):
        LlamaTokenizer(VOCAB, [("a", "x")])
    with pytest.raises(UnsupportedOptionError, match="spaces_between_special_tokens=True"):
        LlamaTokenizer(VOCAB, MERGES, spaces_between_special_tokens=True)


def test_arguments_by_position():
    """In the order of transformers 5."""
    tokenizer = LlamaTokenizer(VOCAB, MERGES, False, "<s>", "</s>", "<unk>", False, True, False)
    assert (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert (tokenizer.legacy, tokenizer.add_prefix_space) == (True, False)


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
def test_a_token_that_is_not_to_be(tmp_path, name):
    """What tokenizer_config.json says of putting it around a text is about another one."""
    folder = small.llama(tmp_path / "model", add_eos_token=True)
    tokenizer = LlamaTokenizer.from_pretrained(folder, **{name: None})
    whole = LlamaTokenizer.from_pretrained(folder).encode("a")
    assert tokenizer.encode("a") == (whole[1:] if name == "bos_token" else whole[:-1])
    assert not getattr(tokenizer, f"add_{name}")
    with pytest.raises(InputError, match=f"no {name} that it could add"):
        LlamaTokenizer.from_pretrained(folder, **{name: None, f"add_{name}": True})


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("merges", lambda _: LlamaTokenizer(VOCAB, 5)),
        ("merges", lambda _: LlamaTokenizer(VOCAB, [5])),
        ("skip_special_tokens", lambda it: it.decode([1], skip_special_tokens="no")),
        ("clean_up_tokenization_spaces", lambda it: it.decode([1], False, **{CLEAN: "no"})),
        ("already_has_special_tokens", lambda it: it.get_special_tokens_mask([1], None, "no")),
        ("add_bos_token", lambda it: setattr(it, "add_bos_token", "no")),
        ("save_directory", lambda it: it.save_vocabulary(None)),
        ("save_directory", lambda it: it.save_pretrained(None)),
    ],
)
def test_arguments_of_another_type(name, call):
    with pytest.raises(InputError, match=f"{name} is "):
        call(LlamaTokenizer(VOCAB, MERGES))


def test_older_names_of_a_call():
    tokenizer = LlamaTokenizer(VOCAB, MERGES)
    lists = {"return_tensors": None}
    assert tokenizer.encode_plus("ab", "a", False, **lists) == {
        "input_ids": [7, 3, 4],
        "attention_mask": [1, 1, 1],
    }
    rows = tokenizer.batch_encode_plus([("ab", "a"), ("a", "b")], **lists)["input_ids"]
    assert rows == [[1, 7, 1, 3, 4], [1, 3, 4, 1, 3, 5]]
    assert tokenizer.vocab == tokenizer.get_vocab()
