"""Small Granite Speech NAR checkpoints with random tensors, laid out like the real repositories."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from conftest import TINY

VOCAB, BLANK, PAD = 61, 0, 1
ENCODER = {
    "model_type": "granite_speech_nar_encoder",
    "input_dim": 160,
    "hidden_dim": 32,
    "num_layers": 4,
    "num_heads": 2,
    "dim_head": 16,
    "feedforward_mult": 2,
    "output_dim": 13,
    "context_size": 10,
    "max_pos_emb": 16,
    "conv_kernel_size": 7,
    "conv_expansion_factor": 2,
    "self_conditioning_layer": 2,
    "bpe_output_dim": VOCAB,
    "bpe_pooling_window": 4,
    "blank_token_id": BLANK,
    "dropout": 0.1,
    "pred_dropout": 0.25,
    "initializer_range": 0.02,
}
PROJECTOR = {
    "model_type": "granite_speech_nar_projector",
    "num_layers": 2,
    "num_encoder_layers": 3,
    "hidden_size": 48,
    "num_heads": 3,
    "block_size": 15,
    "downsample_rate": 5,
    "encoder_dim": 32,
    "llm_dim": 32,
    "mlp_ratio": 2,
    "mlp_bias": True,
    "attn_bias": True,
    "dropout_prob": 0.1,
    "layernorm_eps": 1e-6,
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
    "rms_norm_eps": 1e-5,
    "bos_token_id": BLANK,
    "eos_token_id": BLANK,
    "pad_token_id": PAD,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    # layers that outweigh the embeddings: else the editor says its slots again
    "embedding_multiplier": 0.4,
    "attention_multiplier": 0.4,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.6,
}
CONFIG = {
    "model_type": "granite_speech_nar",
    "architectures": ["GraniteSpeechNarForASR"],
    "auto_map": {"AutoModel": "modeling_granite_speech_nar.GraniteSpeechNarForASR"},
    "encoder_config": ENCODER,
    "projector_config": PROJECTOR,
    "text_config": TEXT,
    "encoder_layer_indices": [1, 2, -1],
    "blank_token_id": BLANK,
    "scale_projected_embeddings": True,
    "min_edit_sequence_length": 8,
    "tie_word_embeddings": True,
    "dtype": "float32",
    "transformers_version": "5.5.3",
}
LAYOUTS = ("first", "second", "transformers", "mlx-audio")


def tensors(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, mx.array]:
    """Those of a checkpoint under the names of IBM's second revision and in torch's layouts; norms
    and BatchNorm statistics are drawn too, so that none hides a mistake."""
    encoder, projector, text = (
        config[f"{part}_config"] for part in ("encoder", "projector", "text")
    )
    rng = np.random.default_rng(seed)
    made: dict[str, mx.array] = {}

    def draw(name: str, *shape: int, scale: float | None = None) -> None:
        scale = scale or 1.3 * shape[-1] ** -0.5
        made[name] = mx.array(rng.normal(size=shape).astype(np.float32) * scale)

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        draw(f"{name}.weight", outputs, inputs)
        if bias:
            draw(f"{name}.bias", outputs, scale=0.1)

    def norm(name: str, size: int, bias: bool = True) -> None:
        made[f"{name}.weight"] = mx.array(1 + 0.2 * rng.normal(size=size).astype(np.float32))
        if bias:
            draw(f"{name}.bias", size, scale=0.2)

    dim, inner = encoder["hidden_dim"], encoder["num_heads"] * encoder["dim_head"]
    linear("encoder.input_linear", encoder["input_dim"], dim)
    for number in range(encoder["num_layers"]):
        name = f"encoder.layers.{number}"
        for part in ("ff1", "ff2"):
            norm(f"{name}.{part}.pre_norm", dim)
            linear(f"{name}.{part}.up_proj", dim, dim * encoder["feedforward_mult"])
            linear(f"{name}.{part}.down_proj", dim * encoder["feedforward_mult"], dim)
        norm(f"{name}.attn.pre_norm", dim)
        linear(f"{name}.attn.to_q", dim, inner, bias=False)
        linear(f"{name}.attn.to_kv", dim, 2 * inner, bias=False)
        linear(f"{name}.attn.to_out", inner, dim)
        positions = 2 * encoder["max_pos_emb"] + 1
        draw(f"{name}.attn.rel_pos_emb.weight", positions, encoder["dim_head"])
        channels = dim * encoder["conv_expansion_factor"]
        norm(f"{name}.conv.norm", dim)
        linear(f"{name}.conv.up_conv", dim, 2 * channels)
        made[f"{name}.conv.up_conv.weight"] = made[f"{name}.conv.up_conv.weight"][..., None]
        draw(f"{name}.conv.depth_conv.conv.weight", channels, 1, encoder["conv_kernel_size"])
        norm(f"{name}.conv.batch_norm", channels)
        draw(f"{name}.conv.batch_norm.running_mean", channels, scale=0.2)
        variance = 0.5 + rng.random(size=channels).astype(np.float32)
        made[f"{name}.conv.batch_norm.running_var"] = mx.array(variance)
        made[f"{name}.conv.batch_norm.num_batches_tracked"] = mx.array(7, mx.int64)
        linear(f"{name}.conv.down_conv", channels, dim)
        made[f"{name}.conv.down_conv.weight"] = made[f"{name}.conv.down_conv.weight"][..., None]
        norm(f"{name}.post_norm", dim)
    linear("encoder.out", dim, encoder["output_dim"])
    linear("encoder.out_mid", encoder["output_dim"], dim)
    linear("encoder.out_bpe", dim, encoder["bpe_output_dim"])
    # drafts of several tokens: what differs between frames outweighs what they have in common
    made["encoder.input_linear.weight"] *= 4
    made["encoder.out_bpe.bias"] *= 0.1

    width, layers = projector["hidden_size"], projector["num_encoder_layers"]
    for number in range(layers):
        norm(f"projector.layer_norms.{number}", dim)
    linear("projector.layer_projector", layers * dim, width)
    draw("projector.query", 1, projector["block_size"] // projector["downsample_rate"], width)
    draw("projector.window_positions", 1, projector["block_size"], width)
    for number in range(projector["num_layers"]):
        name = f"projector.qformer.layers.{number}"
        norm(f"{name}.attn_norm", width)
        for part in "qkvo":
            linear(f"{name}.cross_attention.{part}_proj", width, width)
        norm(f"{name}.mlp_norm", width)
        linear(f"{name}.mlp.fc1", width, width * projector["mlp_ratio"])
        linear(f"{name}.mlp.fc2", width * projector["mlp_ratio"], width)
    norm("projector.out_norm", width)
    linear("projector.out_linear", width, text["hidden_size"])

    size, heads = text["hidden_size"], text["num_attention_heads"]
    kv_size = size // heads * text["num_key_value_heads"]
    draw("language_model.model.embed_tokens.weight", text["vocab_size"], size, scale=1.0)
    for number in range(text["num_hidden_layers"]):
        name = f"language_model.model.layers.{number}"
        norm(f"{name}.input_layernorm", size, bias=False)
        norm(f"{name}.post_attention_layernorm", size, bias=False)
        for part, outputs in zip("qkv", (size, kv_size, kv_size), strict=True):
            linear(f"{name}.self_attn.{part}_proj", size, outputs, bias=False)
        linear(f"{name}.self_attn.o_proj", size, size, bias=False)
        for part in ("gate", "up"):
            linear(f"{name}.mlp.{part}_proj", size, text["intermediate_size"], bias=False)
        linear(f"{name}.mlp.down_proj", text["intermediate_size"], size, bias=False)
    norm("language_model.model.norm", size, bias=False)
    return made


NORMS = r"^projector\.(layer_norms\.\d+|out_norm|qformer\.layers\.\d+\.(attn|mlp)_norm)\."
_TRANSFORMERS = {
    r"^language_model\.model\.": "model.language_model.",
    r"^encoder\.out_bpe\.": "model.out_bpe.",
    r"^projector\.layer_projector\.": "projector.proj.",
    r"^projector\.query$": "projector.qformer.queries",
    r"^projector\.window_positions$": "projector.qformer.pos_emb",
    r"^projector\.out_linear\.": "projector.qformer.linear.",
    r"\.cross_attention\.": ".cross_attn.",
    r"^(encoder|projector)\.": r"model.\1.",
}


def in_layout(
    layout: str, config: dict[str, Any], weights: dict[str, mx.array]
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """A checkpoint of IBM's second revision in another of `LAYOUTS`."""
    config = json.loads(json.dumps(config))
    if layout == "first":
        config["model_type"] = "nle"
        config["architectures"] = ["NLENARDecoder"]
        config["llm_config"] = config.pop("text_config")
        for part, kind in (("encoder", "nle_encoder"), ("projector", "nle_projector")):
            config[f"{part}_config"]["model_type"] = kind
        # there is a blank before all tokens
        config["encoder_config"]["bpe_output_dim"] += 1
        del config["blank_token_id"], config["encoder_config"]["blank_token_id"]
        head = "encoder.out_bpe."
        blank = {f"{head}weight": mx.zeros((1, 32)), f"{head}bias": mx.zeros(1)}
        own = {n: mx.concatenate([blank[n], w]) if n in blank else w for n, w in weights.items()}
        # the old label of the blank is for no token now
        own[f"{head}weight"][0], own[f"{head}bias"][0] = (
            weights[f"{head}{part}"][BLANK] for part in ("weight", "bias")
        )
        own[f"{head}bias"][BLANK + 1] = -1e4
        return config, {re.sub("^language_model", "llm", n): w for n, w in own.items()}
    if layout == "transformers":
        names = {"encoder_layer_indices", "scale_projected_embeddings", "min_edit_sequence_length"}
        config = {name: value for name, value in config.items() if name not in names | {"auto_map"}}
        config["architectures"] = ["GraniteSpeechNarForCTC"]
        config["text_config"]["model_type"] = "granite_speech_nar_text"
        encoder, projector = config["encoder_config"], config["projector_config"]
        encoder["cat_hidden_layers"] = [1, 2]
        encoder["vocabulary_size"] = encoder.pop("bpe_output_dim")
        encoder["pooling_window"] = encoder.pop("bpe_pooling_window")
        del encoder["blank_token_id"], encoder["pred_dropout"]
        projector["num_attention_heads"] = projector.pop("num_heads")
        projector["num_hidden_layers"] = projector.pop("num_layers")
        projector["window_size"] = projector.pop("block_size")
        projector["layer_norm_eps"] = projector.pop("layernorm_eps")
        projector["attention_bias"] = projector.pop("attn_bias")
        projector["intermediate_size"] = projector["hidden_size"] * projector.pop("mlp_ratio")
        for name in ("llm_dim", "mlp_bias", "encoder_dim", "num_encoder_layers", "dropout_prob"):
            del projector[name]
        renamed = {}
        for name, value in weights.items():
            if not re.search(NORMS, name):
                for pattern, replacement in _TRANSFORMERS.items():
                    name = re.sub(pattern, replacement, name)
                renamed[name] = value
        return config, renamed
    if layout == "mlx-audio":
        renamed = {}
        for name, value in weights.items():
            if name.endswith(("up_conv.weight", "down_conv.weight", "depth_conv.conv.weight")):
                value = value.swapaxes(1, 2)
            name = name.replace("depth_conv.conv.", "depth_conv.").replace("batch_norm", "bn")
            name = re.sub(r"^language_model\.model\.", "editor.", name)
            if not name.endswith("num_batches_tracked"):
                renamed[name] = value
        return config, renamed
    return config, weights


def plain_norms(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The same with norms of the projector that neither scale nor shift."""
    return {
        name: value
        if not re.search(NORMS, name)
        else mx.ones_like(value)
        if name.endswith("weight")
        else mx.zeros_like(value)
        for name, value in weights.items()
    }


def write_repository(
    folder: Path, config: dict[str, Any], weights: dict[str, mx.array], shards: int = 2
) -> Path:
    """The files of a repository, remote code and other stray ones included."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"sampling_rate": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160}
    kind = "GraniteSpeechNarFeatureExtractor"
    code = {"AutoFeatureExtractor": f"feature_extraction_granite_speech_nar.{kind}"}
    settings |= {"n_mels": 80, "feature_extractor_type": kind, "auto_map": code}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    names = sorted(weights)
    files = [f"model-{k + 1:05}-of-{shards:05}.safetensors" for k in range(shards)]
    placed = {name: files[index % shards] for index, name in enumerate(names)}
    for file in files:
        own = {name: weights[name] for name in names if placed[name] == file}
        mx.save_safetensors(str(folder / file), own, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("modeling_granite_speech_nar.py", "configuration_granite_speech_nar.py"):
        (folder / name).write_text("raise SystemExit('this code is not ours to run')\n")
    (folder / "README.md").write_text("# a model\n")
    (folder / "10226_10111_000000.wav").write_bytes(b"RIFF")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    return folder


def small(folder: Path, layout: str = "second", **changes: Any) -> Path:
    """A repository in a layout, with other values in config.json."""
    config = {**CONFIG, **changes}
    return write_repository(folder, *in_layout(layout, config, tensors(config)))


def on_bundled_encoder(folder: Path, replaced: dict[int, int], **changes: Any) -> Path:
    """A repository of a model with the bundled encoder, whose head of tokens has 511 of
    them after a blank, and an editor that says each slot again, but for the tokens in `replaced`.

    Its audio is of no consequence; that is for models with random tensors to show.
    """
    stored = mx.load(str(TINY / "model.safetensors"))
    weights = {n: w for n, w in stored.items() if n.startswith("encoder.")}
    config = json.loads((TINY / "config.json").read_text())
    dim, vocab = config["encoder_config"]["hidden_dim"], config["text_config"]["vocab_size"]
    head = mx.load(str(TINY / "out_llm.safetensors"))
    weights["encoder.out_bpe.weight"] = mx.pad(head["weight"], [(0, 1), (0, 0)])
    weights["encoder.out_bpe.bias"] = mx.pad(head["bias"], (0, 1), constant_values=-1e4)
    encoder = {**ENCODER, **config["encoder_config"], "self_conditioning_layer": 3}
    encoder |= {"model_type": ENCODER["model_type"], "bpe_output_dim": vocab + 1}
    text = {**config["text_config"], "num_hidden_layers": 1, "tie_word_embeddings": False}
    text |= {"embedding_multiplier": 1.0, "logits_scaling": 1.0}
    config = {**CONFIG, "encoder_config": encoder, "text_config": text, **changes}
    config["projector_config"] = {**PROJECTOR, "encoder_dim": dim, "llm_dim": dim}
    config |= {"encoder_layer_indices": [2, 4, -1], "tie_word_embeddings": False}
    rest = tensors(config)
    table = rest["language_model.model.embed_tokens.weight"]
    rest["language_model.model.norm.weight"] = mx.ones(dim)
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        rest[f"language_model.model.layers.0.{part}.weight"] *= 0
    table = table / mx.linalg.norm(table, axis=1, keepdims=True)
    # what answers to a token that is replaced is the other one's row
    head = {token: table[token] for token in range(vocab)}
    for token, other in replaced.items():
        head[other], head[token] = head[other] + table[token], -table[token]
    rest["language_model.lm_head.weight"] = mx.stack([head[token] for token in range(vocab)])
    rest["language_model.model.embed_tokens.weight"] = table
    others = {n: w for n, w in rest.items() if not n.startswith("encoder.")}
    return write_repository(folder, config, weights | others)
