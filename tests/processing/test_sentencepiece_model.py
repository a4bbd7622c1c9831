"""Sentencepiece files as vocabularies with merges, and files that are none."""

from __future__ import annotations

import pytest
import small_tokenizers as small

from mlx_speech import (
    CheckpointError,
    LlamaTokenizer,
    Tokenizer,
)


def test_kinds_of_pieces(tmp_path):
    kinds = {"unknown": 2, "normal": 1, "control": 3, "user-defined": 4, "unused": 5}
    pieces = [(f"<{kind}>", number) for kind, number in kinds.items()]
    folder = small.llama(tmp_path, unk_token="<unknown>", bos_token="<control>", eos_token=None)
    (folder / "tokenizer.model").write_bytes(
        small.sentencepiece_file([*pieces, ("▁", 1), ("a", 1), ("▁a", 1)])
    )
    backend = LlamaTokenizer.from_pretrained(folder).backend
    added = backend.get_added_tokens_decoder()
    assert {i: (t.content, t.special) for i, t in added.items()} == {
        0: ("<unknown>", True),
        2: ("<control>", True),
        3: ("<user-defined>", False),
    }
    backend = LlamaTokenizer.from_pretrained(small.llama(tmp_path / "bytes")).backend
    added = backend.get_added_tokens_decoder().values()
    assert {token.content for token in added} == {"<s>", "</s>", "<gap>", "<unk>"}


class TestBadFiles:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"IQ== 0\nIg== 1\nIw== 2\n" * 50,
            b"<!DOCTYPE html><html></html>",
            b'{"model": {}}',
            bytes(range(256)) * 4,
            small.LLAMA_MODEL.read_bytes()[:5000],
            small.LLAMA_MODEL.read_bytes()[7:],
            small.field(1, b"\x0a\x01\xff"),
            small.field(1, 3),
            small.sentencepiece_file([("a", 1)]),
            small.field(1, small.field(1, b"\xff")) + small.sentencepiece_file([("<unk>", 2)]),
        ],
        ids=[
            *("empty", "tiktoken", "page", "json", "bytes", "cut-off", "shifted", "not-a-piece"),
            *("number", "no-unknown", "not-text"),
        ],
    )
    def test_not_sentencepiece(self, tmp_path, content):
        folder = small.llama(tmp_path)
        (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer.model: not a sentencepiece model"):
            Tokenizer.from_pretrained(folder)

    @pytest.mark.parametrize("algorithm", [1, 3, 4], ids=["unigram", "words", "characters"])
    def test_another_algorithm(self, tmp_path, algorithm):
        folder = small.llama(tmp_path)
        content = small.sentencepiece_file([("<unk>", 2), ("a", 1)], algorithm)
        (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"not of byte-pair encoding"):
            Tokenizer.from_pretrained(folder)
