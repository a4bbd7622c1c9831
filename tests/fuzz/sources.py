"""Whole files of every kind that users give, small ones."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_speech import ChatSession, load, load_audio
from mlx_speech.loading import model_class
from tests import small_tokenizers
from tests.media import encoded, make
from tests.pytorch_files import (
    mapping,
    pickled,
    save_pytorch_bin,
    storage,
    tensor,
    write_legacy,
)

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "examples" / "tiny-granite-speech"
TINY_S2T = ROOT / "examples" / "tiny-s2t"
RECORDING = ROOT / "tests" / "data" / "audio" / "espeak_06.flac"
SPEECH_SECONDS = 1.2
SAMPLING_RATE = 16000
#: what a user says to a model, with something that a bad regular expression takes ages for
MESSAGE = f"turn on the kitchen light {'a' * 40}!"


@dataclass(frozen=True)
class Source:
    """A folder of whole files, and the one in it that is mutated.

    Attributes:
        kind: of which the report counts.
        use: how it is used, see `cases.USES`.
        refused: whether it is an error as it is.
    """

    kind: str
    folder: str
    file: str
    use: str
    refused: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.folder}/{self.file}"


#: by soundfile or by PyAV; what is read with one is not always what is written with it
_SOUND_FORMATS = ("aiff", "au", "caf", "flac", "mp3", "nist", "ogg", "voc", "w64", "wav")
_MEDIA_FORMATS = ("aac", "avi", "m4a", "mka", "mkv", "mov", "opus", "ts", "webm", "wma")
#: what is no recording but would lead to one, where it were followed
_LEADING = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nother.ts\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile other.ts\n",
    "m3u": "other.ts\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "dash": "<MPD><Period><AdaptationSet><BaseURL>other.ts</BaseURL></AdaptationSet></Period>",
    "address": "http://127.0.0.1:9/other.ts",
}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_OLDER_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
#: folders of saved conversations -> options of their caches
_CACHES = {
    "chat": {},
    "chat-rotating": {"max_kv_size": 96},
    "chat-quantized": {"kv_bits": 8, "kv_group_size": 32},
}

SOURCES = (
    *(Source("audio", name, f"talk.{name}", "read") for name in (*_SOUND_FORMATS, *_MEDIA_FORMATS)),
    Source("audio", "stereo", "talk.wav", "read"),
    Source("audio", "surround", "talk.m4a", "read"),
    Source("audio", "video", "talk.mp4", "read"),
    *(Source("audio", name, f"talk.{name}", "transcribe") for name in ("wav", "m4a", "webm")),
    *(Source("playlist", name, "talk.wav", "read", refused=True) for name in _LEADING),
    *(
        Source("config", folder, "config.json", "load")
        for folder in ("granite", "jais2", "llama", "speech", "s2t", "quantized")
    ),
    *(Source("config", folder, "generation_config.json", "load") for folder in ("speech", "s2t")),
    Source("config", "speech", "processor_config.json", "load"),
    Source("config", "older", "preprocessor_config.json", "load"),
    Source("config", "s2t", "processor_config.json", "load"),
    *(Source("tokenizer", "llama", file, "load") for file in _TOKENIZER),
    *(Source("tokenizer", "speech", file, "load") for file in _TOKENIZER),
    Source("tokenizer", "llama2", "tokenizer.model", "load"),
    *(Source("tokenizer", "llama2", file, "load") for file in _OLDER_TOKENIZER),
    Source("tokenizer", "s2t", "tokenizer_config.json", "load"),
    Source("tokenizer", "s2t", "sentencepiece.bpe.model", "load"),
    Source("tokenizer", "s2t", "vocab.json", "load"),
    Source("template", "llama", "chat_template.jinja", "load"),
    Source("template", "speech", "chat_template.jinja", "load"),
    *(
        Source("safetensors", folder, "model.safetensors", "load")
        for folder in ("llama", "speech", "s2t", "quantized")
    ),
    Source("safetensors", "shards", "model.safetensors.index.json", "load"),
    *(Source("pickle", f"pickle-{form}", "pytorch_model.bin", "load") for form in ("zip", "old")),
    Source("adapter", "speech", "adapter_config.json", "load"),
    Source("adapter", "speech", "adapter_model.safetensors", "load"),
    *(Source("conversation", folder, "talk.safetensors", "chat") for folder in _CACHES),
    Source("convert", "llama", "config.json", "convert"),
    Source("convert", "llama", "model.safetensors", "convert"),
    Source("convert", "llama", "tokenizer_config.json", "convert"),
    Source("convert", "shards", "model.safetensors.index.json", "convert"),
    Source("convert", "pickle-zip", "pytorch_model.bin", "convert"),
    Source("convert", "quantized", "config.json", "dequantize"),
    Source("convert", "speech", "adapter_config.json", "convert"),
)


def speech() -> np.ndarray:
    """The beginning of a recording, (samples,)."""
    return np.array(load_audio(RECORDING))[: int(SPEECH_SECONDS * SAMPLING_RATE)]


def make_sources(root: Path) -> None:
    """Write the folders of all sources."""
    samples = speech()
    for name in _SOUND_FORMATS:
        _write(root / name / f"talk.{name}", encoded(samples, format=name.upper()))
    for name in _MEDIA_FORMATS:
        (root / name).mkdir()
        make(root / name / f"talk.{name}", samples)
    stereo = np.stack([samples, -samples / 2], axis=1)
    _write(root / "stereo" / "talk.wav", encoded(stereo, format="WAV", subtype="FLOAT"))
    (root / "surround").mkdir()
    make(root / "surround" / "talk.m4a", np.stack([samples] * 8, axis=1), layout="7.1")
    (root / "video").mkdir()
    make(root / "video" / "talk.mp4", samples, video=SPEECH_SECONDS, movflags="faststart")
    for name, text in _LEADING.items():
        _write(root / name / "talk.wav", text.encode())
        shutil.copy(root / "ts" / "talk.ts", root / name / "other.ts")
    shutil.copytree(TINY, root / "speech")
    shutil.copytree(TINY, root / "older")
    (root / "older" / "processor_config.json").unlink()
    shutil.copytree(TINY_S2T, root / "s2t")
    _make_decoder(root / "llama", "llama", small_tokenizers.llama3)
    _make_decoder(root / "granite", "granite", small_tokenizers.gpt2)
    _make_decoder(root / "jais2", "jais2", small_tokenizers.gpt2)
    _make_older_decoder(root / "llama2")
    _make_other_weights(root)
    for folder, options in _CACHES.items():
        (root / folder).mkdir()
        session = ChatSession(*load(TINY), **options)
        session.send(MESSAGE, max_new_tokens=8)
        session.save(root / folder / "talk.safetensors")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def _make_decoder(folder: Path, model_type: str, tokenizer: Callable) -> None:
    """A text checkpoint with small random weights."""
    tokenizer(folder)
    shutil.copy(TINY / "chat_template.jinja", folder)
    config = {"model_type": model_type, "vocab_size": 640, "hidden_size": 64, "dtype": "float32"}
    config |= {"intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": [1, 2]}
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    model = model_class(config)
    mx.random.seed(0)
    weights = dict(tree_flatten(model(model.config_class.from_dict(config)).parameters()))
    small_tokenizers.write_json(folder / "config.json", config)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})


def _make_older_decoder(folder: Path) -> None:
    """With the tokenizer and the template in other files."""
    template = (TINY / "chat_template.jinja").read_text()
    tokenizer = partial(small_tokenizers.llama, chat_template=template, pad_token="<pad>")
    _make_decoder(folder, "llama", tokenizer)
    (folder / "chat_template.jinja").unlink()
    small_tokenizers.write_json(folder / "special_tokens_map.json", {"sep_token": "<sep>"})
    small_tokenizers.write_json(folder / "added_tokens.json", {"<sep>": 600, "<pad>": 601})


def _make_other_weights(root: Path) -> None:
    """The same Llama in shards, in PyTorch's files, and quantized."""
    from mlx_speech.convert import convert

    weights = mx.load(str(root / "llama" / "model.safetensors"))
    for name in ("shards", "pickle-zip", "pickle-old"):
        shutil.copytree(root / "llama", root / name)
        (root / name / "model.safetensors").unlink()
    names, shards = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        held = {name: weights[name] for name in part}
        mx.save_safetensors(str(root / "shards" / file), held, {"format": "pt"})
        shards |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    (root / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    save_pytorch_bin(root / "pickle-zip" / "pytorch_model.bin", weights)
    _save_old_pytorch_bin(root / "pickle-old" / "pytorch_model.bin", weights)
    convert(root / "llama", root / "quantized", quantize=True)


def _save_old_pytorch_bin(path: Path, weights: dict[str, mx.array]) -> None:
    """What `torch.save` wrote before it wrote archives: `weights` of float32."""
    tensors, storages = {}, {}
    for key, (name, value) in enumerate(weights.items()):
        strides = np.cumprod((1, *value.shape[:0:-1]))[::-1].tolist()[: value.ndim]
        stored = storage(str(key), value.size, pickle.NONE)
        tensors[name] = tensor(stored, 0, value.shape, strides)
        storages[str(key)] = (value.size, np.array(value).tobytes())
    write_legacy(path, pickled(mapping(tensors)), storages)
