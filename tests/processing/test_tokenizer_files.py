"""Files of tokenizers that are missing or damaged."""

from __future__ import annotations

import pytest
import small_tokenizers as small
from conftest import edit_json

from mlx_speech import (
    CheckpointError,
    Tokenizer,
)


class TestBadFiles:
    def test_no_file(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no tokenizer.json and no tokenizer.model"):
            Tokenizer.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        "content", ["", "{}", "[]", '{"model": {"type": "WordPiece"}}', "\xff"]
    )
    @pytest.mark.parametrize("name", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
    def test_bad_json(self, tmp_path, content, name):
        folder = small.gpt2(tmp_path, tokenizer_class=name)
        (folder / "tokenizer.json").write_text(content, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"not a readable tokenizer|JSON"):
            Tokenizer.from_pretrained(folder)

    def test_bad_settings(self, tmp_path):
        for name, value, message in (
            ("pad_token", {}, r"a token of tokenizer_config\.json is \{\}, but must be text"),
            ("added_tokens_decoder", {"x": "y"}, "not a readable tokenizer"),
        ):
            folder = small.gpt2(tmp_path, **{name: value})
            with pytest.raises(CheckpointError, match=message):
                Tokenizer.from_pretrained(folder)


def test_a_pattern_that_never_ends(tiny_copy):
    """The library gives up on it with a panic."""
    file = tiny_copy / "tokenizer.json"
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}}
    split = {**pattern, "behavior": "Isolated", "invert": False}
    edit_json(file, pre_tokenizer=split)
    tokenizer = Tokenizer.from_pretrained(tiny_copy)
    assert tokenizer.encode("hello")
    with pytest.raises(CheckpointError, match=r"the tokenizer of the checkpoint fails: .*limit"):
        tokenizer.encode("a" * 40 + "!")


def replace(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    "steps",
    [
        [replace({"String": "a"}, "a" * 30)] * 7,
        [replace({"Regex": ""}, "a" * 30)] * 7,
        [{"type": "Prepend", "prepend": "a" * 5000}],
    ],
    ids=["texts", "patterns", "beginning"],
)
def test_replacements_that_would_fill_the_memory(tiny_copy, steps):
    steps = {"type": "Sequence", "normalizers": steps}
    edit_json(tiny_copy / "tokenizer.json", normalizer=steps)
    with pytest.raises(CheckpointError, match=r"normalizer of .* more than 1000 times as long"):
        Tokenizer.from_pretrained(tiny_copy)


def test_replaced_when_decoding(tiny_copy):
    steps = [replace({"String": "e"}, "e" * 30)] * 7
    edit_json(tiny_copy / "tokenizer.json", decoder={"type": "Sequence", "decoders": steps})
    with pytest.raises(CheckpointError, match=r"decoder of .* more than 1000 times as long"):
        Tokenizer.from_pretrained(tiny_copy)


def test_usual_replacements(tiny_copy):
    """As Llama's and XLM-RoBERTa's."""
    steps = [
        {"type": "NFKC"},
        {"type": "Prepend", "prepend": "▁"},
        replace({"String": " "}, "▁"),
        replace({"String": "``"}, '"'),
        *[replace({"Regex": " {2,}"}, "▁")] * 3,
    ]
    edit_json(tiny_copy / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": steps})
    assert Tokenizer.from_pretrained(tiny_copy).encode("hello")


def test_a_special_token_that_is_none(tiny_copy):
    """The library looks for it only where it encodes, and panics."""
    template = [{"SpecialToken": {"id": "none", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": template, "pair": []}
    edit_json(tiny_copy / "tokenizer.json", post_processor={**processor, "special_tokens": {}})
    with pytest.raises(CheckpointError, match="the tokenizer of the checkpoint fails"):
        Tokenizer.from_pretrained(tiny_copy)
