"""What a conversion wrote, read for comparison."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx

TOKENS = mx.array([[5, 9, 33, 2, 60]])


def logits(model) -> mx.array:
    """Of a text, or of a sound for a speech model."""
    mx.random.seed(0)
    kind = model.config.model_type
    if kind == "speech_to_text":
        return model(mx.random.normal((1, 40, 80)), decoder_input_ids=TOKENS).logits
    if kind == "granite_speech":
        features = mx.random.normal((1, 20, 160))
        ids = mx.array([[2, 89, *([4] * 6), 90]])
        return model(ids, input_features=features).logits
    return model(TOKENS).logits


def tensors(folder: Path, layout: str = "mlx") -> dict[str, mx.array]:
    """Of all shards, whose headers say that they are in this layout."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    result = {}
    for file in sorted(set(index["weight_map"].values())):
        read, metadata = mx.load(str(folder / file), return_metadata=True)
        assert metadata == {"format": layout}
        assert all(index["weight_map"][name] == file for name in read)
        result |= read
    assert result.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in result.values())
    return result


def all_tensors(folder: Path) -> dict[str, mx.array]:
    """Of a converted Granite Speech, its BPE head included."""
    head = mx.load(str(folder / "out_llm.safetensors"))
    return tensors(folder) | {f"encoder.out_llm.{name}": array for name, array in head.items()}


def same(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(mx.array_equal(a[k], b[k]).item() for k in a)
