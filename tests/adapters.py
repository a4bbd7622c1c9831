"""Models that were trained, by chance instead of by data, and the adapters that they give."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_map

from mlx_speech.layers.lora import adapted_modules
from mlx_speech.training.adapter_folder import write_adapter

RANK, SCALE = 4, 1.5
LAYERS = "language_model.model.layers"
FIRST_QUERIES, LAST_LAYER = f"{LAYERS}.0.self_attn.q_proj", f"{LAYERS}.3"
#: one adapter of everything: low-rank terms, the projector, a head, a layer of the decoder
LORA = [FIRST_QUERIES, f"{LAYERS}.1.mlp.down_proj"]
SAVED = ["projector", "encoder.out", LAST_LAYER]


def train(model, saved: Iterable[str], seed: int = 1, step: float = 0.1) -> None:
    """Change all tensors of some modules."""
    mx.random.seed(seed)
    modules = {name: module for name, _, module in adapted_modules(model)}
    for name in saved:
        drawn = tree_map(
            lambda value: (value + step * mx.random.normal(value.shape)).astype(value.dtype),
            modules[name].parameters(),
        )
        modules[name].update(drawn)


def terms(model, layers: Iterable[str], rank: int = RANK, seed: int = 2):
    """mlx-lm's `lora_a` and `lora_b` of layers."""
    mx.random.seed(seed)
    modules = {name: module for name, _, module in adapted_modules(model)}
    found = {}
    for name in layers:
        layer = getattr(modules[name], "base", modules[name])
        outputs, inputs = layer.weight.shape
        a, b = mx.random.normal((inputs, rank)), mx.random.normal((rank, outputs))
        found[name] = (a / inputs**0.5, b / rank**0.5)
    return found


def adapter(
    folder: Path, model, lora=(), saved=(), *, rank: int = RANK, scale: float = SCALE, seed: int = 2
) -> Path:
    """Write what the model became, with new low-rank terms on some layers."""
    about = {"scale": scale, "dropout": 0.05, "saved": saved, "base_model": "owner/base"}
    write_adapter(folder, model, lora=terms(model, lora, rank, seed), rank=rank, **about)
    return folder


def fuse(model, lora: dict, scale: float = SCALE) -> None:
    """Add low-rank terms to the weights of plain layers."""
    modules = dict(model.named_modules())
    for name, (a, b) in lora.items():
        modules[name].weight = modules[name].weight + scale * (a @ b).T
