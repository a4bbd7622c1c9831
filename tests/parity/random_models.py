"""Random small models: transformers' own, written to a folder, and ours that reads it.

Every parameter and buffer is drawn anew after construction, so that none keeps a value that hides
a mistake (zero biases, unit norms, BatchNorm statistics of 0 and 1, zero LoRA B). Weights are
scaled so that attention is neither flat nor one-hot and logits are between 1 and 30 in magnitude,
which `assert_logits_match` checks: an absolute tolerance says nothing about values near zero.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
import transformers
from peft import LoraConfig
from transformers import (
    GraniteForCausalLM,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechPlusConfig,
    GraniteSpeechPlusForConditionalGeneration,
    PreTrainedModel,
)

import mlx_speech
from mlx_speech.layers.model_output import ALIASES
from mlx_speech.loading import load_model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
# more threads than that cost models this small ten times their time on a busy machine
torch.set_num_threads(1)

#: ids with a meaning in every case
EOS, PAD, AUDIO = 0, 1, 4
VOCAB = 61

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
    "model_type": "blip_2_qformer",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "cross_attention_frequency": 1,
    "vocab_size": 8,
}
TEXT = {
    "model_type": "granite",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    # layers that outweigh the embeddings: else a tied model says its last token for ever
    "embedding_multiplier": 0.4,
    "attention_multiplier": 0.15,
    "residual_multiplier": 1.5,
    "logits_scaling": 4.0,
}


@dataclass(frozen=True)
class SpeechCase:
    """What a Granite Speech model differs in from the small ones above."""

    seed: int
    encoder: dict[str, Any] = field(default_factory=dict)
    projector: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    tied: bool = True
    window: tuple[int, int] = (15, 5)
    lora: dict[str, Any] | None = None
    plus: bool = False


SPEECH_CASES = {
    "one-layer": SpeechCase(
        1,
        {"num_layers": 1, "output_dim": 7, "max_pos_emb": 10},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 1},
    ),
    "two-layers-untied-lora": SpeechCase(
        2,
        {"hidden_dim": 48, "num_heads": 3, "context_size": 12, "max_pos_emb": 40}
        | {"conv_kernel_size": 4, "output_dim": 42},
        {"hidden_size": 40},
        {"num_key_value_heads": 1},
        tied=False,
        lora={"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    ),
    "three-layers-untied": SpeechCase(
        3,
        {"hidden_dim": 40, "num_layers": 3, "num_heads": 2, "dim_head": 12, "context_size": 25}
        | {"max_pos_emb": 32, "conv_kernel_size": 15, "feedforward_mult": 2}
        | {"conv_expansion_factor": 1},
        {"num_attention_heads": 2},
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4, "hidden_size": 48},
        tied=False,
    ),
    "four-layers-lora-patterns": SpeechCase(
        4,
        {"hidden_dim": 64, "num_layers": 4, "context_size": 15, "max_pos_emb": 15}
        | {"conv_kernel_size": 8, "output_dim": 100},
        {"hidden_act": "gelu", "layer_norm_eps": 1e-5},
        {"num_hidden_layers": 3, "residual_multiplier": 0.8, "embedding_multiplier": 0.3},
        window=(12, 4),
        lora={
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": r".*language_model.*\.(q|k|v|o|gate)_proj",
            "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 6},
            "alpha_pattern": {"o_proj": 3, r"layers\.\d+\.mlp\.gate_proj": 9},
        },
    ),
    "five-layers": SpeechCase(
        5,
        {"num_layers": 5, "context_size": 20, "max_pos_emb": 64, "conv_kernel_size": 3}
        | {"conv_expansion_factor": 3},
        {"num_hidden_layers": 3, "cross_attention_frequency": 2},
        {"embedding_multiplier": 0.15, "attention_multiplier": 0.3},
        window=(10, 2),
    ),
    # "up_proj" and "down_proj" are also the names of the encoder's feed-forward layers
    "lora-also-in-encoder": SpeechCase(
        6,
        {"conv_kernel_size": 6},
        lora={"r": 3, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj", "down_proj"]},
    ),
    "plus-input-and-middle": SpeechCase(
        7,
        {"num_layers": 4, "cat_hidden_layers": [0, 2], "context_size": 13, "max_pos_emb": 20},
        plus=True,
    ),
    "plus-middle-lora": SpeechCase(
        8,
        {"num_layers": 5, "cat_hidden_layers": [3, 1]},
        tied=False,
        plus=True,
        lora={"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    ),
    "plus-nothing-exported": SpeechCase(9, {"num_layers": 3}, plus=True),
}


def frame_counts(context_size: int) -> list[tuple[int, int]]:
    """(batch, frames): below, at and above a window of 15 and an attention block."""
    return [
        (1, 1),
        (3, 7),
        (1, 15),
        (3, 31),
        (1, context_size - 1),
        (3, context_size),
        (1, context_size + 1),
        (3, 2 * context_size),
        (1, 3 * context_size + 4),
    ]


def speech_config(case: SpeechCase) -> GraniteSpeechConfig:
    encoder = ENCODER | case.encoder
    exported = len(encoder.get("cat_hidden_layers") or [])
    projector = PROJECTOR | {"encoder_hidden_size": encoder["hidden_dim"] * (1 + exported)}
    config_class = GraniteSpeechPlusConfig if case.plus else GraniteSpeechConfig
    return config_class(
        encoder_config=encoder,
        projector_config=projector | case.projector,
        text_config=TEXT | {"tie_word_embeddings": case.tied} | case.text,
        audio_token_index=AUDIO,
        window_size=case.window[0],
        downsample_rate=case.window[1],
        has_lora_adapter=case.lora is not None,
        tie_word_embeddings=case.tied,
    )


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draw all parameters and BatchNorm statistics anew."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like, mean, deviation):
        return mean + deviation * torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(normal(value, 0.0, 0.5 / value.shape[1] ** 0.5))
            elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
                value.copy_(normal(value, 0.0, 0.4))
            elif name.endswith("rel_pos_emb.weight") or name.endswith("out_mid.weight"):
                value.copy_(normal(value, 0.0, 1.0))
            elif value.ndim == 1 and name.endswith("weight"):
                value.copy_(normal(value, 1.0, 0.2))
            elif value.ndim == 1:
                value.copy_(normal(value, 0.0, 0.2))
            else:
                fan_in = value[0].numel()
                value.copy_(normal(value, 0.0, 1.2 / fan_in**0.5))
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(normal(value, 0.3, 0.5))
            elif name.endswith("running_var"):
                value.copy_(0.3 + 1.5 * torch.rand(value.shape, generator=generator))


def save_speech(case: SpeechCase, folder: Path) -> GraniteSpeechForConditionalGeneration:
    """Write a random model, as transformers and peft write it; returns it, adapter on."""
    config = speech_config(case)
    model_class = (
        GraniteSpeechPlusForConditionalGeneration
        if case.plus
        else GraniteSpeechForConditionalGeneration
    )
    model = model_class(config).eval()
    randomize(model, case.seed)
    model.save_pretrained(folder)
    if case.lora is not None:
        add_adapter(model, case.lora, folder, case.seed)
    return model


def add_adapter(model, options: dict[str, Any], folder: Path, seed: int) -> None:
    """Put a random adapter over a model and write it into the model's folder.

    Granite Speech's own `save_pretrained` would write the base again, under the adapted layers'
    names, which not even transformers reads back; so this saves the adapter alone.
    """
    model.add_adapter(LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                drawn = torch.randn(value.shape, generator=generator)
                value.copy_(0.5 * drawn / value.shape[1] ** 0.5)
    PreTrainedModel.save_pretrained(model, folder)
    model.eval()


def save_granite(folder: Path, seed: int, **options: Any) -> GraniteForCausalLM:
    """Write a random Granite text decoder."""
    return save_decoder(folder, seed, GraniteForCausalLM, **options)


def save_decoder(folder: Path, seed: int, model_class: type, **options: Any) -> PreTrainedModel:
    """Write a random text decoder of any class."""
    config_class = model_class.config_class
    known = {f.name for f in dataclasses.fields(config_class)}
    text = {k: v for k, v in TEXT.items() if k in known}
    model = model_class(config_class(**(text | options))).eval()
    randomize(model, seed)
    model.save_pretrained(folder)
    return model


@dataclass
class Pair:
    """The same model twice."""

    reference: Any
    ours: Any
    folder: Path

    @classmethod
    def load(cls, reference, folder: Path) -> Pair:
        """Ours is of the class of the same name."""
        model_class = getattr(mlx_speech, type(reference).__name__, None)
        load = load_model if model_class is None else model_class.from_pretrained
        return cls(reference, load(folder, dtype=mx.float32), folder)

    @property
    def has_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").exists()


def features(batch: int, frames: int, width: int, seed: int = 0) -> np.ndarray:
    """Random input features of the size that log-mel features have."""
    rng = np.random.default_rng(1000 * seed + 100 * batch + frames)
    return rng.normal(0.3, 0.8, (batch, frames, width)).astype(np.float32)


def text_ids(batch: int, length: int, seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    """Random prompts without ids that have a meaning."""
    return np.random.default_rng(seed).integers(AUDIO + 1, vocab, (batch, length))


def speech_ids(batch: int, audio_tokens: int, seed: int = 0) -> np.ndarray:
    """Random prompts with audio between text."""
    before, after = text_ids(batch, 3, seed), text_ids(batch, 5, seed + 1)
    return np.concatenate([before, np.full((batch, audio_tokens), AUDIO), after], axis=1)


def edit_config(folder: Path, **changes: Any) -> None:
    """Change top-level fields of config.json; None removes one."""
    path = folder / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def call(pair: Pair, *args, **kwargs) -> tuple:
    """Ours and the reference's outputs; arrays are given to each in its own kind."""

    def convert(value, kind):
        return kind(value) if isinstance(value, np.ndarray) else value

    both = []
    for model, kind in ((pair.ours, mx.array), (pair.reference, tensor)):
        given = {name: convert(value, kind) for name, value in kwargs.items()}
        with torch.no_grad():
            both.append(model(*(convert(value, kind) for value in args), **given))
    return tuple(both)


def field_names(output: transformers.utils.ModelOutput) -> list[str]:
    """Of the fields of transformers' output, as ours has them, whatever its version calls some."""
    return [ALIASES.get(name, name) for name in output]


def assert_close(ours: mx.array, reference: torch.Tensor, tolerance: float) -> None:
    """No element further apart than `tolerance`."""
    ours, reference = np.array(ours), reference.detach().float().numpy()
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= tolerance


def assert_logits_match(ours: mx.array, reference: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Within 1e-4, and of a size at which that means something."""
    assert 1.0 < reference.abs().max() < 30.0
    assert_close(ours, reference, tolerance)
