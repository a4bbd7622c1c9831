"""The repositories of Granite Speech 5.0 TurboCTC in miniature."""

from __future__ import annotations

from typing import Any

from released_repositories import Repository, tokenizer_files
from turboctc import FEATURES, config, shapes

WIDTH, HEAD, LABELS = 64, 16, 16384


def turboctc(noncommercial: bool) -> Repository:
    """The repositories differ in their tokenizers alone, and in what their cards say."""
    encoder = {
        "vocab_size": LABELS,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 16,
        "num_attention_heads": WIDTH // HEAD,
        "context_size": 128,
        "max_position_embeddings": 512,
    }
    whole = config(**encoder)
    blank = "<unk>" if noncommercial else "<|blank|>"
    named = {"pad_token": blank} | ({"unk_token": blank} if noncommercial else {})
    files: dict[str, Any] = {
        **tokenizer_files(LABELS, {blank: 0}, named, tokenizer_class="ParakeetTokenizer"),
        "processor_config.json": {
            "feature_extractor": FEATURES,
            "processor_class": "GraniteSpeech5Processor",
        },
        # what a class of its own, which came before transformers', has left behind
        "preprocessor_config.json": {"feature_extractor_type": "GraniteEncoderFeatureExtractor"},
        "granite_encoder.py": "raise ImportError('remote code is not to be run')\n",
        "configuration_granite_encoder.py": "raise ImportError('remote code is not to be run')\n",
    }
    if noncommercial:
        files["tokenizer.json"] = byte_fallback_tokenizer(LABELS)
        files["README.md"] = "---\nlicense: cc-by-nc-sa-4.0\nlanguage: en\n---\n"
    return Repository(whole, shapes(whole["encoder_config"]), 1, files)


def byte_fallback_tokenizer(entries: int) -> dict[str, Any]:
    """tokenizer.json of a BPE like SentencePiece's, whose unknown token is the blank."""
    tokens = ["<unk>", *(f"<|tok{number}|>" for number in range(1, 255))]
    added = [
        {"id": index, "content": token, "special": True, "single_word": False}
        | dict.fromkeys(("lstrip", "rstrip", "normalized"), False)
        for index, token in enumerate(tokens)
    ]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [f"▁word{number}" for number in range(len(tokens), entries)]
    space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    steps = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {**model, "vocab": vocabulary, "merges": []},
    }
