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
        for settings in ({"pad_token": {}}, {"added_tokens_decoder": {"x": "y"}}):
            folder = small.gpt2(tmp_path, **settings)
            with pytest.raises(CheckpointError, match="not a readable tokenizer"):
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
