"""A Granite Speech checkpoint of the released models' size, with random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path


def checkpoint_config(layers: int, decoder_layers: int, dtype: str) -> dict:
    """config.json of a Granite Speech model; without a decoder only its width is real."""
    return {
        "model_type": "granite_speech",
        "dtype": dtype,
        "encoder_config": {
            "input_dim": 160,
            "num_layers": layers,
            "hidden_dim": 1024,
            "feedforward_mult": 4,
            "num_heads": 8,
            "dim_head": 128,
            "output_dim": 348,
            "context_size": 200,
            "max_pos_emb": 512,
            "conv_kernel_size": 15,
            "conv_expansion_factor": 2,
        },
        "projector_config": {
            "hidden_size": 1024,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "layer_norm_eps": 1e-12,
            "encoder_hidden_size": 1024,
            "cross_attention_frequency": 1,
        },
        "text_config": {
            "model_type": "granite",
            "vocab_size": 100353 if decoder_layers else 8,
            "hidden_size": 2048,
            "intermediate_size": 4096 if decoder_layers else 8,
            "num_hidden_layers": max(1, decoder_layers),  # no configuration has none
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_multiplier": 0.0078125,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
        "audio_token_index": 7,
        "window_size": 15,
        "downsample_rate": 5,
        "has_lora_adapter": False,
        "tie_word_embeddings": True,
    }


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, in the names and layouts of Hugging Face's."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int, *rest: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, *rest)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str, size: int, *more: str) -> None:
        for part in ("weight", "bias", *more):
            shapes[f"{name}.{part}"] = (size,)

    encoder = config["encoder_config"]
    dim, inner = encoder["hidden_dim"], encoder["hidden_dim"] * encoder["conv_expansion_factor"]
    heads = encoder["num_heads"] * encoder["dim_head"]
    linear("encoder.input_linear", encoder["input_dim"], dim)
    linear("encoder.out", dim, encoder["output_dim"])
    linear("encoder.out_mid", encoder["output_dim"], dim)
    for index in range(encoder["num_layers"]):
        layer = f"encoder.layers.{index}"
        for part in ("ff1", "ff2"):
            norm(f"{layer}.{part}.pre_norm", dim)
            linear(f"{layer}.{part}.up_proj", dim, dim * encoder["feedforward_mult"])
            linear(f"{layer}.{part}.down_proj", dim * encoder["feedforward_mult"], dim)
        norm(f"{layer}.attn.pre_norm", dim)
        linear(f"{layer}.attn.to_q", dim, heads, bias=False)
        linear(f"{layer}.attn.to_kv", dim, 2 * heads, bias=False)
        linear(f"{layer}.attn.to_out", heads, dim)
        positions = 2 * encoder["max_pos_emb"] + 1
        shapes[f"{layer}.attn.rel_pos_emb.weight"] = (positions, encoder["dim_head"])
        norm(f"{layer}.conv.norm", dim)
        linear(f"{layer}.conv.up_conv", dim, 2 * inner, 1)
        linear(f"{layer}.conv.depth_conv.conv", 1, inner, encoder["conv_kernel_size"], bias=False)
        norm(f"{layer}.conv.batch_norm", inner, "running_mean", "running_var")
        linear(f"{layer}.conv.down_conv", inner, dim, 1)
        norm(f"{layer}.post_norm", dim)

    projector, text = config["projector_config"], config["text_config"]
    dim, inner = projector["hidden_size"], projector["intermediate_size"]
    queries = config["window_size"] // config["downsample_rate"]
    shapes["projector.query"] = (1, queries, dim)
    norm("projector.qformer.layernorm", dim)
    linear("projector.linear", dim, text["hidden_size"])
    for index in range(projector["num_hidden_layers"]):
        layer = f"projector.qformer.encoder.layer.{index}"
        sources = {"attention": dim, "crossattention": projector["encoder_hidden_size"]}
        for part, source in sources.items():
            linear(f"{layer}.{part}.attention.query", dim, dim)
            linear(f"{layer}.{part}.attention.key", source, dim)
            linear(f"{layer}.{part}.attention.value", source, dim)
            linear(f"{layer}.{part}.output.dense", dim, dim)
            norm(f"{layer}.{part}.output.LayerNorm", dim)
        linear(f"{layer}.intermediate_query.dense", dim, inner)
        linear(f"{layer}.output_query.dense", inner, dim)
        norm(f"{layer}.output_query.LayerNorm", dim)

    dim, inner = text["hidden_size"], text["intermediate_size"]
    keys = dim // text["num_attention_heads"] * text["num_key_value_heads"]
    shapes["language_model.model.embed_tokens.weight"] = (text["vocab_size"], dim)
    shapes["language_model.model.norm.weight"] = (dim,)
    for index in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{index}"
        for part, outputs in {"q": dim, "k": keys, "v": keys, "o": dim}.items():
            linear(f"{layer}.self_attn.{part}_proj", dim, outputs, bias=False)
        linear(f"{layer}.mlp.gate_proj", dim, inner, bias=False)
        linear(f"{layer}.mlp.up_proj", dim, inner, bias=False)
        linear(f"{layer}.mlp.down_proj", inner, dim, bias=False)
        shapes[f"{layer}.input_layernorm.weight"] = (dim,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (dim,)
    return shapes


def write_checkpoint(folder: Path) -> None:
    """Random weights for the folder's config.json, of sizes that keep activations near 1."""
    import mlx.core as mx

    config = json.loads((folder / "config.json").read_text())
    mx.random.seed(0)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        value = mx.random.uniform(-1, 1, shape)
        if name.endswith("running_var"):
            value = 1.0 + 0.5 * value
        elif "norm.weight" in name.lower():
            value = 1.0 + 0.1 * value
        elif len(shape) == 1:
            value = 0.1 * value
        elif not name.endswith("query"):
            value = value * math.sqrt(3.0 / math.prod(shape[1:]))
        weights[name] = value.astype(getattr(mx, config["dtype"]))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
