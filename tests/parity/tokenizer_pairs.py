"""Tokenizers of every kind in both packages, and what has to be the same of them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import small_tokenizers as small
import transformers
from conftest import TINY, TINY_S2T
from transformers import AutoTokenizer as ReferenceAuto

from mlx_speech import (
    AutoTokenizer,
)

TEXTS = [text for text in small.random_texts(40, seed=3) if len(text) > 30][:8]
PAIRS = [text[::-1][:20] or "x" for text in TEXTS]


def copied(source: Path):
    def make(folder: Path, **config: Any) -> Path:
        shutil.copytree(source, folder)
        file = folder / "tokenizer_config.json"
        small.write_json(file, json.loads(file.read_text(encoding="utf-8")) | config)
        return folder

    return make


MAKERS = {
    "llama": small.llama,
    "llama-eos": lambda folder, **config: small.llama(
        folder, **{"add_eos_token": True, "legacy": True, "add_prefix_space": False} | config
    ),
    "llama3": small.llama3,
    "gpt2": small.gpt2,
    "tiny-granite": copied(TINY),
    "tiny-s2t": copied(TINY_S2T),
}


class Pair(NamedTuple):
    reference: transformers.PreTrainedTokenizerBase
    ours: Any


def read(folder: Path, **options: Any) -> Pair:
    sides = {"padding_side": "left"} if "padding_side" not in options else {}
    options = {**sides, **options}
    return Pair(
        ReferenceAuto.from_pretrained(folder, **options),
        AutoTokenizer.from_pretrained(folder, **options),
    )


def plain(batch: Any) -> dict[str, Any]:
    return {
        name: rows.tolist() if hasattr(rows, "tolist") else rows for name, rows in batch.items()
    }


SAME = (
    *("vocab_size", "special_tokens_map", "all_special_tokens", "all_special_ids"),
    *("extra_special_tokens", "extra_special_tokens_ids", "added_tokens_encoder", "is_fast"),
    *("model_max_length", "model_input_names", "truncation_side", "padding_side"),
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "mask_token_id"),
)


def assert_same(reference, ours, *, but: tuple[str, ...] = ()) -> None:
    assert len(ours) == len(reference)
    assert ours.get_vocab() == reference.get_vocab()
    assert ours.get_added_vocab() == reference.get_added_vocab()
    assert [repr(t) for _, t in sorted(ours.added_tokens_decoder.items())] == [
        repr(t) for _, t in sorted(reference.added_tokens_decoder.items())
    ]
    for name in SAME:
        if name not in but:
            assert getattr(ours, name) == getattr(reference, name), name
    rng = random.Random(5)
    rows = [rng.choices(range(len(reference)), k=20) for _ in range(50)]
    for text in [*TEXTS, "one<pad> <new>  two <x>three<wide> four"]:
        ids = reference.encode(text)
        assert ours.encode(text) == ids
        rows.append(ids)
    for ids in rows:
        for skip in (True, False):
            expected = reference.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == expected
