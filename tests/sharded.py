"""Small random models whose layers 2, 3 or 6 processes can share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from adapters import adapter
from mlx.utils import tree_flatten

from mlx_speech import (
    GraniteConfig,
    GraniteForCausalLM,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    Jais2Config,
    Jais2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

AUDIO = 4  #: id of the audio token
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": 2,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
#: layers outweigh the embeddings, or a tied model says its last token for ever
MULTIPLIERS = {
    "embedding_multiplier": 0.4,
    "attention_multiplier": 0.15,
    "residual_multiplier": 1.5,
    "logits_scaling": 0.5,
    "tie_word_embeddings": True,
}
ENCODER = {
    "input_dim": 24,
    "hidden_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "output_dim": 11,
    "context_size": 10,
    "max_pos_emb": 12,
    "conv_kernel_size": 7,
}
PROJECTOR = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "encoder_hidden_size": 32,
}


@dataclass(frozen=True)
class Ranks:
    """A `mx.distributed.Group` as far as sharing out goes, without other processes."""

    number: int
    count: int

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return self.count


def random_model(family: str, **changes):
    """One with random weights, norms and biases; changes are of its decoder's configuration."""
    shape = SHAPE | changes
    if family == "granite":
        model = GraniteForCausalLM(GraniteConfig(**shape, **MULTIPLIERS))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, attention_bias=True))
    elif family == "jais2":
        model = Jais2ForCausalLM(Jais2Config(**shape, rope_theta=1e4))
    else:
        parts = {"encoder_config": ENCODER, "projector_config": PROJECTOR}
        text = {**shape, **MULTIPLIERS}
        config = GraniteSpeechConfig(**parts, text_config=text, audio_token_index=AUDIO)
        model = GraniteSpeechForConditionalGeneration(config)
    tensors = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(len(family)), len(tensors))
    drawn = []
    for (name, value), key in zip(tensors, keys, strict=True):
        normal = mx.random.normal(value.shape, key=key)
        width = value.shape[-1] ** 0.5
        drawn.append((name, 1 + 0.2 * normal if value.ndim == 1 else 1.2 * normal / width))
    model.load_weights(drawn)
    return model.eval()


def save(model, folder: Path, bits: int | None = None, mode: str = "affine", group: int = 32):
    """Write it, its decoder's layers quantized if bits are given."""
    if bits is not None:
        layers = model.get_decoder()
        linear = lambda _, module: isinstance(module, nn.Linear)  # noqa: E731
        nn.quantize(layers, group, bits, mode=mode, class_predicate=linear)
    model.save_pretrained(folder)
    return folder


def decoder_adapter(folder: Path, model, layers, saved=(), seed: int = 2) -> Path:
    """Write an adapter of layers of a model's decoder, by the ends of their names."""
    prefix = next(name for name, module in model.named_modules() if module is model.get_decoder())
    lora, whole = ([f"{prefix}.layers.{name}" for name in names] for names in (layers, saved))
    return adapter(folder, model, lora, whole, seed=seed)
