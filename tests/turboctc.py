"""Small TurboCTC models, random and made without torch, laid out as IBM's repositories are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from released_repositories import Shapes, batch_norm, linear, norm, prefixed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ENCODER = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_mel_bins": 80,
    "context_size": 8,
    "max_position_embeddings": 12,
    "conv_kernel_size": 7,
    "conv_expansion_factor": 2,
    "subsample_layers": [0, 1],
}
#: changes for what needs neither a tokenizer nor recordings
SMALL = {"vocab_size": 30, "num_mel_bins": 6}
SENTENCES = (
    "turn on the light in the kitchen and set a timer for twelve minutes",
    "the quick brown fox jumps over the lazy dog until noon",
    "she would rather walk home than wait for another hour",
    "what is the weather going to be tomorrow in the village",
)
FEATURES = {
    "delta_win_length": 3,
    "feature_extractor_type": "GraniteSpeech5FeatureExtractor",
    "feature_size": 320,
    "hop_length": 160,
    "logmel_floor_db": 8.0,
    "n_fft": 512,
    "num_mel_bins": 80,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16000,
    "win_length": 400,
}


def config(**changes: Any) -> dict[str, Any]:
    """A config.json; `changes` are of the encoder."""
    encoder = {**ENCODER, **changes, "model_type": "granite_speech5_encoder"}
    return {
        "architectures": ["GraniteSpeech5ForCTC"],
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
        "dtype": "bfloat16",
        "encoder_config": encoder,
        "initializer_range": 0.02,
        "model_type": "granite_speech5_ctc",
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
        "vocab_size": encoder["vocab_size"],
    }


def shapes(encoder: dict[str, Any]) -> Shapes:
    """Of all tensors of a model whose head is tied."""
    w, wide, labels = (encoder[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))
    inner = w * encoder["conv_expansion_factor"]
    distances = 2 * encoder["max_position_embeddings"] + 1
    result = linear("encoder.input_linear", w, 4 * encoder["num_mel_bins"])
    result |= linear("encoder.out", labels, w) | linear("encoder.out_mid", w, labels)
    for number in range(encoder["num_hidden_layers"]):
        layer: Shapes = {}
        for part in ("feed_forward1", "feed_forward2"):
            layer |= linear(f"{part}.linear1", wide, w) | linear(f"{part}.linear2", w, wide)
        for part in "qkv":
            layer |= linear(f"self_attn.{part}_proj", w, w, bias=False)
        layer |= linear("self_attn.o_proj", w, w)
        layer["self_attn.rel_pos_emb.weight"] = distances, w // encoder["num_attention_heads"]
        layer |= linear("conv.pointwise_lin1", 2 * inner, w)
        layer["conv.depthwise_conv.weight"] = inner, 1, encoder["conv_kernel_size"]
        layer |= batch_norm("conv.norm", inner) | linear("conv.pointwise_lin2", w, inner)
        for part in ("feed_forward1", "self_att", "conv", "feed_forward2", "out"):
            layer |= norm(f"norm_{part}", w)
        result |= prefixed(f"encoder.layers.{number}.", layer)
    return result


def tensors(encoder: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random ones, float32 and int64, none of a value that hides a mistake."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, shape in shapes(encoder).items():
        noise = rng.normal(size=shape)
        if name.endswith("num_batches_tracked"):
            drawn[name] = np.array(7, np.int64)
            continue
        if name.endswith("running_var"):
            noise = 0.3 + np.abs(noise)
        elif "norm" in name and name.endswith(".weight"):
            noise = 1 + 0.2 * noise
        elif len(shape) == 1:
            noise = 0.2 * noise
        elif not name.endswith(("rel_pos_emb.weight", "out_mid.weight")):
            noise = 1.2 * noise / np.prod(shape[1:]) ** 0.5
        drawn[name] = noise.astype(np.float32)
    return drawn


def byte_level() -> tuple[Tokenizer, dict[str, str]]:
    """As the Apache release has it: byte-level BPE, and a blank of its own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=ENCODER["vocab_size"],
        special_tokens=["<|blank|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return bpe, {"pad_token": "<|blank|>"}


def byte_fallback() -> tuple[Tokenizer, dict[str, str]]:
    """As the nc release has it: BPE like SentencePiece's, whose unknown token is the blank."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", *(f"<|tok{i}|>" for i in range(1, 9))]
    special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=ENCODER["vocab_size"] + 40, special_tokens=special, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    # bytes are tokens like others: what is special is left out of texts
    data = json.loads(bpe.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(data)), {"pad_token": "<unk>", "unk_token": "<unk>"}


TOKENIZERS = {"byte level": byte_level, "byte fallback": byte_fallback}


def write_tokenizer(folder: Path, kind: str = "byte level") -> None:
    backend, settings = TOKENIZERS[kind]()
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "ParakeetTokenizer", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write(
    folder: Path,
    values: dict[str, np.ndarray] | None = None,
    dtype: mx.Dtype = mx.bfloat16,
    **changes: Any,
) -> Path:
    """A folder as IBM's repository: with what an older class of its own has left behind.

    Args:
        values: tensors in place of random ones.
        dtype: of the weights; BatchNorms are in float32, their counters int64.
        changes: of the encoder's configuration.
    """
    data = config(**changes)
    stored = {}
    for name, value in (values or tensors(data["encoder_config"])).items():
        array = mx.array(value, dtype=mx.int64 if value.dtype == np.int64 else mx.float32)
        stored[name] = array if ".conv.norm." in name else array.astype(dtype)
    mx.save_safetensors(str(folder / "model.safetensors"), stored, {"format": "pt"})
    files = {
        "config.json": data,
        "processor_config.json": {
            "feature_extractor": FEATURES,
            "processor_class": "GraniteSpeech5Processor",
        },
        "preprocessor_config.json": {"n_mels": 40, "num_mel_bins": 40, "hop_length": 320},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "granite_encoder.py").write_text("raise ImportError\n")
    write_tokenizer(folder)
    return folder


def features(frames: int, width: int = 4 * ENCODER["num_mel_bins"], seed: int = 0) -> np.ndarray:
    """Random input features, (frames, width), of the size that real ones have."""
    rng = np.random.default_rng(1000 * seed + frames)
    return rng.normal(0.3, 0.8, (frames, width)).astype(np.float32)


def waveform(samples: int) -> np.ndarray:
    """A tone that rises in noise, at 16 kHz."""
    rng = np.random.default_rng(samples)
    time = np.arange(samples) / 16000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 3000 * time) * time)
    return (tone + 0.01 * rng.normal(size=samples)).astype(np.float32)
