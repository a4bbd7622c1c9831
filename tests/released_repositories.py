"""The released repositories in miniature: files, tensors and settings as they are there.

Names, numbers of layers and vocabularies are the real ones, as the facts about each repository are;
widths are a few numbers, and weights are random.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

Shapes = dict[str, tuple[int, ...]]

#: of the encoder and the projector; of a head in them; of the text decoder; of a head in it
WIDTH, HEAD, TEXT_WIDTH, TEXT_HEAD = 32, 16, 32, 8
ENCODER_LAYERS, QUERY_LAYERS, TEXT_LAYERS = 16, 2, 40

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    "USER: {{ message.content }}\n ASSISTANT:{% endif %}{% endfor %}"
)
ROLES_TEMPLATE = (
    "{% for message in messages %}<|start_of_role|>{{ message.role }}<|end_of_role|>"
    "{{ message.content }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
#: of 3.3 and of 4.x and 5.0, by their ids
TOKENS_3 = {
    "<|end_of_text|>": 0,
    "<|start_of_role|>": 49152,
    "<|end_of_role|>": 49153,
    **{f"<|unused_{index}|>": index for index in range(49154, 49159)},
    "<|audio|>": 49159,
}
TOKENS_4 = {
    "<|pad|>": 100256,
    "<|end_of_text|>": 100257,
    "<|start_of_role|>": 100264,
    "<|end_of_role|>": 100265,
    "<|unk|>": 100269,
    "<|audio|>": 100352,
}


def linear(name: str, outputs: int, inputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Shapes:
    statistics = {f"{name}.running_{what}": (width,) for what in ("mean", "var")}
    return {**norm(name, width), **statistics, f"{name}.num_batches_tracked": ()}


def prefixed(start: str, shapes: Shapes) -> Shapes:
    return {start + name: shape for name, shape in shapes.items()}


def encoder_tensors(labels: int) -> Shapes:
    """Granite Speech's and NAR's encoder, with a CTC head of so many labels."""
    w = WIDTH
    shapes = {**linear("input_linear", w, 160), **linear("out", labels, w)}
    shapes |= linear("out_mid", w, labels)
    for number in range(ENCODER_LAYERS):
        layer: Shapes = {}
        for part in ("ff1", "ff2"):
            layer |= norm(f"{part}.pre_norm", w) | linear(f"{part}.up_proj", 4 * w, w)
            layer |= linear(f"{part}.down_proj", w, 4 * w)
        layer |= norm("attn.pre_norm", w) | linear("attn.to_q", w, w, bias=False)
        layer |= linear("attn.to_kv", 2 * w, w, bias=False) | linear("attn.to_out", w, w)
        layer |= {"attn.rel_pos_emb.weight": (1025, HEAD)} | norm("conv.norm", w)
        layer |= {"conv.up_conv.weight": (4 * w, w, 1), "conv.up_conv.bias": (4 * w,)}
        layer |= {"conv.depth_conv.conv.weight": (2 * w, 1, 15)}
        layer |= batch_norm("conv.batch_norm", 2 * w)
        layer |= {"conv.down_conv.weight": (w, 2 * w, 1), "conv.down_conv.bias": (w,)}
        shapes |= prefixed(f"layers.{number}.", layer | norm("post_norm", w))
    return shapes


def projector_tensors(encoder_width: int) -> Shapes:
    """Granite Speech's windowed Q-Former."""
    w = WIDTH
    shapes = {"query": (1, 3, w), **linear("linear", TEXT_WIDTH, w)} | norm("qformer.layernorm", w)
    for number in range(QUERY_LAYERS):
        layer: Shapes = {}
        for part, inputs in (("attention", w), ("crossattention", encoder_width)):
            layer |= linear(f"{part}.attention.query", w, w)
            for what in ("key", "value"):
                layer |= linear(f"{part}.attention.{what}", w, inputs)
            layer |= linear(f"{part}.output.dense", w, w) | norm(f"{part}.output.LayerNorm", w)
        layer |= linear("intermediate_query.dense", 4 * w, w)
        layer |= linear("output_query.dense", w, 4 * w) | norm("output_query.LayerNorm", w)
        shapes |= prefixed(f"qformer.encoder.layer.{number}.", layer)
    return shapes


def decoder_tensors(vocabulary: int) -> Shapes:
    """Granite without its head."""
    w, kv = TEXT_WIDTH, TEXT_WIDTH // 4
    shapes = {"embed_tokens.weight": (vocabulary, w), "norm.weight": (w,)}
    for number in range(TEXT_LAYERS):
        layer = {f"{n}_layernorm.weight": (w,) for n in ("input", "post_attention")}
        for name, outputs in (("q", w), ("k", kv), ("v", kv), ("o", w)):
            layer |= linear(f"self_attn.{name}_proj", outputs, w, bias=False)
        for name in ("gate", "up"):
            layer |= linear(f"mlp.{name}_proj", 2 * w, w, bias=False)
        layer |= linear("mlp.down_proj", w, 2 * w, bias=False)
        shapes |= prefixed(f"layers.{number}.", layer)
    return shapes


ENCODER_CONFIG = {
    "model_type": "granite_speech_encoder",
    "input_dim": 160,
    "hidden_dim": WIDTH,
    "num_layers": ENCODER_LAYERS,
    "num_heads": WIDTH // HEAD,
    "dim_head": HEAD,
    "feedforward_mult": 4,
    "context_size": 200,
    "conv_kernel_size": 15,
    "conv_expansion_factor": 2,
    "max_pos_emb": 512,
    "output_dim": 348,
    "dropout": 0.1,
}
PROJECTOR_CONFIG = {
    "model_type": "blip_2_qformer",
    "hidden_size": WIDTH,
    "encoder_hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": QUERY_LAYERS,
    "num_attention_heads": 2,
    "cross_attention_frequency": 1,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
TEXT_CONFIG = {
    "model_type": "granite",
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 2 * TEXT_WIDTH,
    "num_hidden_layers": TEXT_LAYERS,
    "num_attention_heads": TEXT_WIDTH // TEXT_HEAD,
    "num_key_value_heads": TEXT_WIDTH // TEXT_HEAD // 4,
    "max_position_embeddings": 4096,
    "vocab_size": 100353,
    "rope_theta": 10000,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.0078125,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 100257,
    "eos_token_id": 100257,
    "pad_token_id": 100256,
    "torch_dtype": "float32",
}


@dataclass
class Repository:
    """What a repository holds.

    tensors: of the model, as they are called there; shards: how many files they are in.
    separate: files of tensors beside those.
    files: all others; a dict becomes JSON.
    """

    config: dict[str, Any]
    tensors: Shapes
    shards: int
    files: dict[str, str | bytes | dict]
    separate: dict[str, Shapes] = field(default_factory=dict)

    def write(self, folder: Path, seed: int = 0) -> Path:
        """As a folder; its shards hold the tensors in turn."""
        folder.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        for name, content in {"config.json": self.config, **self.files}.items():
            if isinstance(content, dict):
                content = json.dumps(content)
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        names = [f"model-{n + 1:05}-of-{self.shards:05}.safetensors" for n in range(self.shards)]
        shards = {f: list(self.tensors)[n :: self.shards] for n, f in enumerate(names)}
        if self.shards == 1:
            shards = {"model.safetensors": list(self.tensors)}
        else:
            weight_map = {name: file for file, held in shards.items() for name in held}
            index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        files = {file: {name: self.tensors[name] for name in held} for file, held in shards.items()}
        for file, shapes in {**files, **self.separate}.items():
            arrays = {name: random_tensor(name, shape, rng) for name, shape in shapes.items()}
            mx.save_safetensors(str(folder / file), arrays, {"format": "pt"})
        return folder

    def counted(self) -> tuple[int, int]:
        """Floating-point tensors of the model, and counters of its BatchNorms."""
        counters = sum(name.endswith("num_batches_tracked") for name in self.tensors)
        return len(self.tensors) - counters, counters

    def damaged(self, folder: Path, target: Path, tensor: str, array: mx.array | None) -> Path:
        """A copy of what was written, with another array in place of the tensor whose name ends so,
        or with a further one of that name; None leaves it out."""
        shutil.copytree(folder, target, copy_function=os.link)
        names = [name for name in self.tensors if name.endswith(tensor)]
        shards = sorted(target.glob("model*.safetensors"))
        file = shards[[*self.tensors].index(names[0]) % len(shards)] if names else shards[0]
        held = {name: value + 0 for name, value in mx.load(str(file)).items()}
        mx.eval(held)
        held[names[0] if names else tensor] = array
        file.unlink()  # as it is a link to the undamaged one
        mx.save_safetensors(str(file), {n: a for n, a in held.items() if a is not None})
        return target


def random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> mx.array:
    """In the type that it has in the repositories."""
    if name.endswith("num_batches_tracked"):
        return mx.array(1000, mx.int64)
    values = mx.array(rng.standard_normal(shape, np.float32)) * 0.1
    if name.endswith("running_var") or (name.endswith("norm.weight") and len(shape) == 1):
        values = 1 + mx.abs(values)
    # TurboCTC's statistics
    return values if ".conv.norm.running_" in name else values.astype(mx.bfloat16)


def byte_level_tokenizer(entries: int, tokens: dict[str, int]) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE with so many entries, of which those have a meaning."""
    from tokenizers import pre_tokenizers

    taken = {index: token for token, index in tokens.items() if index < entries}
    letters = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    vocabulary = {}
    for index in range(entries):
        token = taken.get(index) or next(letters, f"Ġword{index}")
        vocabulary[token] = index
    added = [
        {"id": index, "content": token, "special": True, "single_word": False}
        | dict.fromkeys(("lstrip", "rstrip", "normalized"), False)
        for token, index in tokens.items()
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = True
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def tokenizer_files(
    entries: int, tokens: dict[str, int], named: dict[str, str] | None = None, **settings: Any
) -> dict[str, Any]:
    """tokenizer.json and what is beside it; `named` are those with a purpose, by that."""
    end = "<|end_of_text|>"
    pad = "<|pad|>" if "<|pad|>" in tokens else end
    named = named or {"eos_token": end, "bos_token": end, "pad_token": pad}
    config = {"tokenizer_class": "GPT2Tokenizer", "padding_side": "left", **named, **settings}
    return {
        "tokenizer.json": byte_level_tokenizer(entries, tokens),
        "tokenizer_config.json": config,
        "special_tokens_map.json": named,
        "README.md": "---\nlicense: apache-2.0\n---\n",
        ".gitattributes": "*.safetensors filter=lfs",
    }


PREPROCESSOR = {
    "feature_extractor_type": "GraniteSpeechFeatureExtractor",
    "melspec_kwargs": {
        "sample_rate": 16000,
        "n_fft": 512,
        "win_length": 400,
        "hop_length": 160,
        "n_mels": 80,
    },
    "projector_window_size": 15,
    "projector_downsample_rate": 5,
    "sampling_rate": 16000,
}
FILES_4 = {
    **tokenizer_files(100352, TOKENS_4, chat_template=None),
    "chat_template.jinja": PLAIN_TEMPLATE,
    "preprocessor_config.json": PREPROCESSOR,
    "processor_config.json": {"processor_class": "GraniteSpeechProcessor"},
    "vocab.json": "{}",
    "merges.txt": "#version: 0.2\n",
}


def granite_speech(
    vocabulary: int = 100353,
    *,
    labels: int = 348,
    tied: bool,
    exported: int = 1,
    layout: str = "language_model.model.",
    **config: Any,
) -> tuple[dict[str, Any], Shapes]:
    """Configuration and tensors of a Granite Speech with a decoder.

    Args:
        exported: layers that the encoder gives to the projector.
        layout: what the names of the decoder's tensors begin with.
        config: further entries; parts of `text_config` and `encoder_config` by these names.
    """
    width = exported * WIDTH
    text = {**TEXT_CONFIG, "vocab_size": vocabulary, **config.pop("text_config", {})}
    text = {name: value for name, value in text.items() if value is not None}
    encoder = {**ENCODER_CONFIG, "output_dim": labels, **config.pop("encoder_config", {})}
    whole = {
        "architectures": ["GraniteSpeechForConditionalGeneration"],
        "model_type": "granite_speech",
        "audio_token_index": 100352,
        "downsample_rate": 5,
        "window_size": 15,
        "has_lora_adapter": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "encoder_config": encoder,
        "projector_config": {**PROJECTOR_CONFIG, "encoder_hidden_size": width},
        "text_config": text,
        **config,
    }
    tensors = prefixed("encoder.", encoder_tensors(labels))
    tensors |= prefixed("projector.", projector_tensors(width))
    tensors |= prefixed(layout, decoder_tensors(vocabulary))
    if not tied:
        tensors |= linear("language_model.lm_head", vocabulary, TEXT_WIDTH, bias=False)
    return whole, tensors


#: beside the shards, with bare names
BPE_HEAD = {"out_llm.safetensors": {"weight": (100353, WIDTH), "bias": (100353,)}}
SAMPLE = {"multilingual_sample.wav": b"RIFF"}


def granite_4_0() -> Repository:
    return Repository(*granite_speech(tied=False, transformers_version="4.54.0"), 3, FILES_4)


def granite_4_1() -> Repository:
    model = granite_speech(tied=False, transformers_version="4.57.6")
    return Repository(*model, 3, {**FILES_4, **SAMPLE}, BPE_HEAD)


def granite_5_0(rope: str = "flat") -> Repository:
    """With its YaRN under each name that a loader may find."""
    settings = {
        "flat": {"rope_scaling": YARN},
        "nested": {"rope_theta": None, "rope_parameters": {**YARN, "rope_theta": 10000}},
        "theta outside": {"rope_parameters": YARN},
    }[rope]
    text = {"max_position_embeddings": 16384, **settings}
    model = granite_speech(tied=False, text_config=text, transformers_version="5.7.0")
    return Repository(*model, 3, {**FILES_4, **SAMPLE}, BPE_HEAD)


def granite_4_1_plus(october: bool) -> Repository:
    """As it was in April 2026, and as it was updated in October: YaRN, and another layout."""
    rope = {**YARN, "rope_theta": 10000} if october else {"rope_type": "default"}
    model = granite_speech(
        tied=True,
        exported=2,
        layout="language_model.model.model." if october else "language_model.model.",
        model_type="granite_speech_plus",
        architectures=["GraniteSpeechPlusForConditionalGeneration"],
        encoder_config={"model_type": "granite_speech_plus_encoder", "cat_hidden_layers": [3]},
        text_config={"rope_theta": None, "rope_parameters": {"rope_theta": 10000, **rope}}
        | ({"max_position_embeddings": 16384} if october else {}),
        transformers_version="5.19.0" if october else "5.6.0.dev0",
    )
    files = {
        **FILES_4,
        "chat_template.jinja": ROLES_TEMPLATE,
        "generation_config.json": {"eos_token_id": 100257, "pad_token_id": 100256},
    }
    del files["preprocessor_config.json"]
    return Repository(*model, 2, files)


def granite_3_3() -> Repository:
    text = {
        "rope_theta": 10000000.0,
        "max_position_embeddings": 131072,
        "attention_multiplier": 0.015625,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    }
    model = granite_speech(
        49160,
        labels=256,
        tied=True,
        text_config=text,
        audio_token_index=49159,
        has_lora_adapter=True,
        transformers_version="4.52.4",
    )
    rank, kv = 4, TEXT_WIDTH // 4
    adapter: Shapes = {}
    for number in range(TEXT_LAYERS):
        for name, outputs in (("q_proj", TEXT_WIDTH), ("v_proj", kv)):
            start = f"language_model.model.layers.{number}.self_attn.{name}."
            adapter |= {f"{start}lora_A.weight": (rank, TEXT_WIDTH)}
            adapter |= {f"{start}lora_B.weight": (outputs, rank)}
    files = {
        **tokenizer_files(49152, TOKENS_3, chat_template=ROLES_TEMPLATE),
        "preprocessor_config.json": {},
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
        "adapter_config.json": {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank // 2,
            "target_modules": ["q_proj", "v_proj"],
        },
        "10226_10111_000000.wav": b"RIFF",
    }
    return Repository(*model, 2, files, {"adapter_model.safetensors": adapter})
