"""A tiny non-autoregressive Granite Speech, trained, put together from two places: the encoder of
examples/tiny-granite-speech, and data/tiny-nar, whose tensors make_tiny_nar.py wrote.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx

BASE = Path(__file__).parents[1] / "examples/tiny-granite-speech"
ADDED = Path(__file__).parent / "data/tiny-nar"
ADDED_TENSORS = "added.safetensors"


def checkpoint(folder: Path) -> Path:
    """The whole checkpoint in `folder`, laid out as the released repository is."""
    tensors = mx.load(str(ADDED / ADDED_TENSORS))
    for name, values in mx.load(str(BASE / "model.safetensors")).items():
        if name.startswith("encoder."):
            tensors[name] = values
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(ADDED / name, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder)
    return folder
