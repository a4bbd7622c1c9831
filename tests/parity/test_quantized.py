"""Conversions of text models load with mlx-lm too, and give the same."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from convert import convert
from mlx_speech.loading import load_model

pytest.importorskip("mlx_lm", reason="mlx-lm needs Python 3.11")

ROOT = Path(__file__).parents[2]
DECODERS = ROOT / "tests" / "data" / "decoders"
TOKENS = mx.array([[5, 9, 33, 2, 60]])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quantize": True, "q_group_size": 32},
        {"quantize": True, "quant_predicate": "mixed_4_8", "q_group_size": 32},
        {"quantize": True, "q_mode": "mxfp4"},
        {"quantize": True, "q_mode": "nvfp4"},
        {"quantize": True, "quant_predicate": lambda path, module: "mlp" in path and {"bits": 3}},
    ],
    ids=["16", "all_4bit", "mixed_4_8", "mxfp4", "nvfp4", "custom"],
)
@pytest.mark.parametrize("kind", ["granite", "llama"])
def test_logits(tmp_path, kind, options):
    from mlx_lm.utils import load_model as mlx_lm_load

    # layers of 48 inputs stay as they are, in one more way to be read
    (result,) = convert(DECODERS / kind, tmp_path / "out", **options)
    theirs, _ = mlx_lm_load(result.folder)
    ours = load_model(result.folder, dtype=mx.float32)
    quantized = {
        path: (module.bits, module.group_size, module.mode)
        for path, module in ours.named_modules()
        if "scales" in module
    }
    assert bool(quantized) == bool(options)
    assert quantized == {
        path: (module.bits, module.group_size, module.mode)
        for path, module in theirs.named_modules()
        if "scales" in module
    }
    expected = theirs(TOKENS).astype(mx.float32)
    assert mx.allclose(ours(TOKENS).logits, expected, atol=2e-2 * mx.abs(expected).max().item())


def test_load(tmp_path, tiny_text):
    """`mlx_lm.load` wants a tokenizer beside the model; one that answers shows that both fit."""
    import mlx_lm

    from mlx_speech import generate, load

    (result,) = convert(tiny_text, tmp_path / "out", quantize=True, q_bits=8)
    model, tokenizer = mlx_lm.load(str(result.folder))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "turn on the kitchen light"}], add_generation_prompt=True
    )
    theirs = mlx_lm.generate(model, tokenizer, prompt, max_tokens=20)
    assert theirs == "the kitchen light is on."
    messages = [{"role": "user", "content": "turn on the kitchen light"}]
    assert generate(*load(result.folder), messages, max_new_tokens=20) == theirs
