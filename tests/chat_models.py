"""Small random text models that only mlx-lm runs, and what mlx-lm itself makes of prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
from conftest import DATA
from mlx.utils import tree_flatten, tree_map

QWEN3 = DATA / "chat-model"  #: see make_chat_model.py
GOLDEN = json.loads((QWEN3 / "golden.json").read_text())
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

#: recurrent: its cache forgets nothing
MAMBA = {
    "model_type": "mamba",
    "hidden_size": 16,
    "intermediate_size": 32,
    "state_size": 4,
    "num_hidden_layers": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
}
#: one layer sees all tokens, the other one the latest: it forgets until its window has moved on
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "head_dim": 32,
    "sliding_window": 48,
    "sliding_window_pattern": 2,
}


def write_random(folder: Path, config: dict) -> Path:
    """A checkpoint of one of these, with the tokenizer of the bundled chat model."""
    from mlx_lm.utils import _get_classes

    folder.mkdir()
    config = {**config, "vocab_size": 96, "eos_token_id": 2}
    model_class, args = _get_classes(config)
    mx.random.seed(22)
    model = model_class(args.from_dict(config))
    weights = tree_map(lambda w: w + 0.3 * mx.random.normal(w.shape), model.parameters())
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(weights)))
    for name in TOKENIZER:
        shutil.copy(QWEN3 / name, folder)
    return folder


def quantized(folder: Path) -> Path:
    """The bundled chat model in 4 bits, by mlx-lm."""
    from mlx_lm.utils import load, quantize_model, save

    model, tokenizer, config = load(str(QWEN3), return_config=True)
    model, config = quantize_model(model, config, group_size=32, bits=4)
    save(folder, QWEN3, model, tokenizer, config)
    return folder


def by_mlx_lm(folder: Path, messages: list[dict], max_tokens: int, dtype=None) -> tuple:
    """The prompt's ids, and ids and text of the greedy reply, from an empty cache."""
    from mlx_lm import load, stream_generate

    model, tokenizer = load(str(folder))
    if dtype is not None:
        model.set_dtype(dtype)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    said = list(stream_generate(model, tokenizer, ids, max_tokens=max_tokens))
    return ids, [r.token for r in said], "".join(r.text for r in said).strip()
