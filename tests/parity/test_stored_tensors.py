"""What transformers makes of a file whose head or types are not what config.json says."""

from __future__ import annotations

import warnings

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from mlx_speech.checkpoint.float8 import apply_scales
from mlx_speech.checkpoint.safetensors import read_safetensors
from mlx_speech.loading import load_model

from .random_models import assert_logits_match, edit_config, save_decoder, tensor, text_ids


@pytest.mark.parametrize("kept", [("head", "table"), ("head",), ("table",)], ids="-".join)
@pytest.mark.parametrize("same", [True, False], ids=["same", "another"])
@torch.no_grad()
def test_a_tied_head_that_is_stored(kept, same, tmp_path):
    save_decoder(tmp_path, 3, LlamaForCausalLM, tie_word_embeddings=False)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    names = {"head": "lm_head.weight", "table": "model.embed_tokens.weight"}
    if same:
        tensors[names["head"]] = tensors[names["table"]].clone()
    for part, name in names.items():
        if part not in kept:
            del tensors[name]
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    edit_config(tmp_path, tie_word_embeddings=True)
    ids = text_ids(2, 7)
    reference = LlamaForCausalLM.from_pretrained(tmp_path).eval()(tensor(ids)).logits
    with warnings.catch_warnings(action="ignore"):  # that the head differs
        ours = load_model(tmp_path, dtype=mx.float32)
    assert_logits_match(ours(mx.array(ids)).logits, reference)
    assert ours.config.tie_word_embeddings == (same or len(kept) == 1)


@pytest.mark.parametrize("grid", [(1, 1), (6, 1), (2, 3)], ids=["tensor", "rows", "blocks"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize(
    "scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu], ids=str
)
def test_scaled_weights(grid, dtype, scale_dtype, tmp_path):
    """All bytes that are numbers, times scales."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    values = values[torch.isfinite(values.float())][:240].reshape(6, 40).contiguous()
    values = values[:, :39].contiguous()
    scales = (2.0 ** torch.arange(-3, grid[0] * grid[1] - 3).reshape(grid)).to(scale_dtype)
    stored = {"weight": values, "weight_scale_inv": scales}
    save_file({f"a.{name}": value for name, value in stored.items()}, tmp_path / "a.safetensors")
    ours = apply_scales(read_safetensors(tmp_path / "a.safetensors"), {})["a.weight"]
    reference = Fp8Dequantize(None)._dequantize_one(values, scales, torch.float32)
    np.testing.assert_array_equal(np.array(ours), reference.numpy())
