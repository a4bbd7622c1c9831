"""Granite Speech NAR's repository in miniature, at each of its revisions."""

from __future__ import annotations

import re

from released_repositories import (
    ENCODER_CONFIG,
    PREPROCESSOR,
    QUERY_LAYERS,
    TEXT_CONFIG,
    TEXT_WIDTH,
    TOKENS_4,
    WIDTH,
    Repository,
    Shapes,
    decoder_tensors,
    encoder_tensors,
    linear,
    norm,
    prefixed,
    tokenizer_files,
)

LAYERS = [4, 8, 12, -1]  #: whose states the projector gets
LABELS = 348
#: how the newest revision calls what the ones before call otherwise
NEWEST = (
    (r"^(encoder|projector)\.", r"model.\1."),
    (r"^model\.encoder\.out_bpe\.", "model.out_bpe."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"\.layer_projector\.", ".proj."),
    (r"projector\.query$", "projector.qformer.queries"),
    (r"projector\.window_positions$", "projector.qformer.pos_emb"),
    (r"projector\.out_linear\.", "projector.qformer.linear."),
    (r"\.cross_attention\.", ".cross_attn."),
)
PROJECTOR_NORMS = r"^projector\.(layer_norms|qformer\.layers\.\d+\.\w+_norm|out_norm)\b"


def projector_tensors() -> Shapes:
    w = TEXT_WIDTH
    shapes = {"query": (1, 3, w), "window_positions": (1, 15, w)}
    shapes |= linear("layer_projector", w, len(LAYERS) * WIDTH)
    shapes |= norm("out_norm", w) | linear("out_linear", w, w)
    for number in range(len(LAYERS)):
        shapes |= norm(f"layer_norms.{number}", WIDTH)
    for number in range(QUERY_LAYERS):
        layer = norm("attn_norm", w) | norm("mlp_norm", w)
        for part in "qkvo":
            layer |= linear(f"cross_attention.{part}_proj", w, w)
        layer |= linear("mlp.fc1", 2 * w, w) | linear("mlp.fc2", w, 2 * w)
        shapes |= prefixed(f"qformer.layers.{number}.", layer)
    return shapes


def granite_nar(revision: str) -> Repository:
    """Of revision "old", "middle" or "newest"."""
    vocabulary = 100352
    labels, blank = (100353, 0) if revision == "old" else (vocabulary, 100257)
    encoder = {
        **ENCODER_CONFIG,
        "model_type": "granite_speech_nar_encoder",
        "self_conditioning_layer": 8,
        "bpe_output_dim": labels,
        "bpe_pooling_window": 4,
        "blank_token_id": blank,
        "pred_dropout": 0.25,
        "initializer_range": 0.02,
    }
    projector = {
        "model_type": "granite_speech_nar_projector",
        "num_layers": QUERY_LAYERS,
        "num_encoder_layers": len(LAYERS),
        "hidden_size": TEXT_WIDTH,
        "num_heads": 4,
        "block_size": 15,
        "downsample_rate": 5,
        "encoder_dim": WIDTH,
        "llm_dim": TEXT_WIDTH,
        "mlp_ratio": 2,
        "mlp_bias": True,
        "attn_bias": True,
        "dropout_prob": 0.1,
        "layernorm_eps": 1e-6,
    }
    text = {**TEXT_CONFIG, "vocab_size": vocabulary, "tie_word_embeddings": True}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": text.pop("rope_theta")}}
    config = {
        "architectures": ["GraniteSpeechNarForASR"],
        "model_type": "granite_speech_nar",
        "encoder_config": encoder,
        "projector_config": projector,
        "text_config": {**text, **rope},
        "encoder_layer_indices": LAYERS,
        "blank_token_id": 100257,
        "scale_projected_embeddings": True,
        "min_edit_sequence_length": 8,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    tensors = prefixed("encoder.", encoder_tensors(LABELS) | linear("out_bpe", labels, WIDTH))
    tensors |= prefixed("projector.", projector_tensors())
    tensors |= prefixed("language_model.model.", decoder_tensors(vocabulary))
    if revision == "old":
        tensors = {re.sub("^language_model", "llm", n): shape for n, shape in tensors.items()}
        config |= {"model_type": "nle", "architectures": ["NLENARDecoder"]}
        config["llm_config"] = config.pop("text_config")
    elif revision == "newest":
        config["architectures"] = ["GraniteSpeechNarForCTC"]
        tensors = {n: shape for n, shape in tensors.items() if not re.match(PROJECTOR_NORMS, n)}
        for pattern, name in NEWEST:
            tensors = {re.sub(pattern, name, n): shape for n, shape in tensors.items()}
    tokens = {token: index for token, index in TOKENS_4.items() if index < vocabulary}
    remote = ("modeling_granite_speech_nar", "configuration_granite_speech_nar")
    files = {
        **tokenizer_files(vocabulary, tokens),
        "preprocessor_config.json": PREPROCESSOR,
        "ctc_tokenizer_config.json": {"char2idx": {}},
        **{f"{name}.py": "raise ImportError('remote code is not to be run')\n" for name in remote},
        "sample.wav": b"RIFF",
    }
    return Repository(config, tensors, 1 if revision == "old" else 2, files)
