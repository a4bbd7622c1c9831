"""Trains data/tokenizers/llama.model, of the kind of Llama 2's but small, and writes beside it what
transformers makes of it, and of the chat templates.

Needs what `make parity` installs: `.venv/bin/python tests/make_tokenizer.py`.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import chat_templates as chats
import small_tokenizers as small
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer


def train() -> bytes:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(small.CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=640,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        character_coverage=0.98,
        user_defined_symbols=["<gap>"],
        minloglevel=2,
    )
    return model.getvalue()


def encodings(folder: Path) -> list[dict]:
    """Ids of some texts, and their texts with special tokens and without, for each settings."""
    rows = []
    for options in small.LLAMA_SETTINGS:
        tokenizer = AutoTokenizer.from_pretrained(small.llama(folder, **options))
        for text in small.GOLDEN_TEXTS:
            ids = tokenizer.encode(text)
            plain = tokenizer.decode(ids, skip_special_tokens=True)
            rows.append(
                {
                    "options": options,
                    "text": text,
                    "ids": ids,
                    "decoded": tokenizer.decode(ids),
                    "plain": plain,
                }
            )
    return rows


def prompts(folder: Path) -> list[dict]:
    """Conversations as each template renders them."""
    rows = []
    for name, template in chats.TEMPLATES.items():
        tokenizer = AutoTokenizer.from_pretrained(small.llama(folder, chat_template=template))
        for chat, messages in chats.GOLDEN_CHATS.items():
            for number, options in enumerate(chats.GOLDEN_OPTIONS):
                prompt = tokenizer.apply_chat_template(messages, tokenize=False, **options)
                rows.append({"template": name, "chat": chat, "options": number, "prompt": prompt})
    return rows


def main() -> None:
    small.LLAMA_MODEL.parent.mkdir(exist_ok=True)
    small.LLAMA_MODEL.write_bytes(train())
    with tempfile.TemporaryDirectory() as folder:
        golden = {"encodings": encodings(Path(folder)), "prompts": prompts(Path(folder))}
    small.write_json(small.GOLDEN, golden)


if __name__ == "__main__":
    main()
