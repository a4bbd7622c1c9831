"""Text that comes token by token, whole characters only."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from mlx_speech.generation import StreamingDetokenizer
from mlx_speech.processing.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer whose tokens are single bytes, so that characters span several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    return Tokenizer(backend, {})


def byte_fallback_tokenizer() -> Tokenizer:
    """As Llama 2's: marked spaces, the first of them lost, and bytes for rare characters."""
    pieces = ["▁", "a", "▁a", "▁▁", ".", "é", "�", "\n"]
    vocab = [*(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    model = models.BPE({p: i for i, p in enumerate(vocab)}, [], byte_fallback=True)
    backend = Backend(model)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, {})


class TestStreaming:
    @pytest.mark.parametrize(
        "text",
        [
            "plain words",
            "  spaced   out  ",
            "Grüße aus Köln",
            "日本語のテスト",
            "👩‍👩‍👧 family 🇩🇪 é",
            "\n a\n",
            "",
        ],
    )
    def test_pieces_make_the_text(self, text):
        tokenizer = byte_tokenizer()
        ids = tokenizer.encode(text)
        stream = StreamingDetokenizer(tokenizer)
        pieces = [*(stream.add(i) for i in ids), stream.finish()]
        assert (
            "".join(pieces)
            == tokenizer.decode(ids, skip_special_tokens=True).strip()
            == text.strip()
        )
        assert not any("\ufffd" in piece for piece in pieces)

    def test_a_character_appears_with_its_last_byte(self):
        tokenizer = byte_tokenizer()
        stream = StreamingDetokenizer(tokenizer)
        assert [stream.add(i) for i in tokenizer.encode("aé")] == ["a", "", "é"]

    def test_special_tokens_are_silent(self):
        tokenizer = byte_tokenizer()
        ids = [*tokenizer.encode("ab"), tokenizer.backend.token_to_id("<|end|>")]
        stream = StreamingDetokenizer(tokenizer)
        assert [stream.add(i) for i in ids] == ["a", "b", ""]
        assert stream.finish() == ""

    def test_any_bytes_at_all(self):
        """Sequences that are no valid text, as a model may sample them."""
        tokenizer = byte_tokenizer()
        rng = random.Random(0)
        for _ in range(300):
            ids = [rng.randrange(256) for _ in range(rng.randrange(1, 24))]
            stream = StreamingDetokenizer(tokenizer)
            text = "".join([*(stream.add(i) for i in ids), stream.finish()])
            assert text == tokenizer.decode(ids, skip_special_tokens=True).strip()

    def test_any_pieces_and_bytes_at_all(self):
        """One invalid byte makes the bytes before it invalid too, and some of them were text."""
        tokenizer = byte_fallback_tokenizer()
        rng = random.Random(1)
        bytes_of_text = [*"ß日".encode(), *"👩".encode(), 0x20, 0x41, 0xFF]
        for _ in range(2000):
            pool = rng.choice([bytes_of_text, range(256, 266), [*bytes_of_text, *range(256, 266)]])
            ids = rng.choices(pool, k=rng.randrange(1, 30))
            stream = StreamingDetokenizer(tokenizer)
            text = "".join([*(stream.add(i) for i in ids), stream.finish()])
            assert text == tokenizer.decode(ids, skip_special_tokens=True).strip()

    def test_bytes_wait_for_the_end_of_their_run(self):
        tokenizer = byte_fallback_tokenizer()
        stream = StreamingDetokenizer(tokenizer)
        ids = [257, *"é".encode(), 265, 260]
        assert [stream.add(i) for i in ids] == ["a", "", "", "", "é."]

    def test_a_step_decodes_few_tokens(self):
        tokenizer = byte_fallback_tokenizer()
        stream = StreamingDetokenizer(tokenizer)
        lengths = []
        decode = stream._decode
        stream._decode = lambda ids: lengths.append(len(ids)) or decode(ids)
        for _ in range(500):
            stream.add(258)
        assert max(lengths) == 2
        assert stream.text == "a" + " a" * 499

    def test_a_tokenizer_that_only_decodes(self):
        class Words:
            def decode(self, ids, *, skip_special_tokens):
                return " ".join(["one", "two", "three"][i] for i in ids)

        stream = StreamingDetokenizer(Words())
        assert [stream.add(i) for i in (2, 0, 0)] == ["three", " one", " one"]
        assert stream.finish() == ""

    def test_with_the_tiny_tokenizer(self, tiny, reference):
        _, processor = tiny
        for entry in reference["files"].values():
            stream = StreamingDetokenizer(processor.tokenizer)
            pieces = [*(stream.add(i) for i in entry["french_ids"]), stream.finish()]
            assert "".join(pieces) == entry["french"].strip()
