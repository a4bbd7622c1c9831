"""Writes small random text decoders and what the reference implementation makes of some ids.

Needs what `make parity` installs: `.venv/bin/python tests/make_decoders.py`. Everything is float32.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    Jais2Config,
    Jais2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

FOLDER = Path(__file__).parent / "data" / "decoders"
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MULTIPLIERS = {
    "embedding_multiplier": 0.4,
    "attention_multiplier": 0.15,
    "residual_multiplier": 1.5,
    "logits_scaling": 4.0,
    "tie_word_embeddings": True,
}
MODELS = {
    "granite": (GraniteForCausalLM, GraniteConfig(**SHAPE, **MULTIPLIERS)),
    "jais2": (Jais2ForCausalLM, Jais2Config(**SHAPE, rope_parameters={"rope_theta": 500000.0})),
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=LLAMA3)),
    "llama-classifier": (LlamaForSequenceClassification, LlamaConfig(**SHAPE, num_labels=3)),
}


@torch.no_grad()
def write(name: str) -> None:
    model_class, config = MODELS[name]
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(len(name))
    for value in model.parameters():
        drawn = torch.randn(value.shape, generator=generator)
        value.copy_(1 + 0.2 * drawn if value.ndim == 1 else 1.2 * drawn / value.shape[-1] ** 0.5)
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = torch.randint(5, 61, (2, 30), generator=generator)
    ids[1, :7] = config.pad_token_id
    mask = (ids != config.pad_token_id).long()
    if name == "llama-classifier":
        output = model(ids, attention_mask=mask, labels=torch.tensor([2, 0]))
        golden = {"logits": output.logits, "loss": output.loss}
    else:
        labels = ids.clone()
        # what padding predicts is nobody's business
        labels[1, :8] = -100
        output = model(ids, attention_mask=mask, labels=labels)
        options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 24}
        golden = {
            "logits": output.logits,
            "loss": output.loss,
            "greedy": model.generate(ids, **options),
            "beams": model.generate(ids, num_beams=4, **options),
        }
    arrays = {key: np.asarray(value) for key, value in golden.items()}
    np.savez_compressed(folder / "golden.npz", ids=ids, mask=mask, **arrays)


if __name__ == "__main__":
    for name in MODELS:
        write(name)
