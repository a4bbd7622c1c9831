"""What the tests share: the bundled checkpoint, recordings, and what the reference says to them."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from fake_hub import FakeHub
from huggingface_hub import constants
from huggingface_hub.utils import _detect_agent, _http
from mlx.utils import tree_flatten

from mlx_speech import LlamaConfig, LlamaForCausalLM, load, load_audio
from mlx_speech.transcription.chunks import AudioChunk, ChunkOptions

# a shell starts what runs in the background with Ctrl-C ignored, and what that starts inherits it
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
TINY = ROOT / "examples" / "tiny-granite-speech"
TINY_S2T = ROOT / "examples" / "tiny-s2t"
DATA = ROOT / "tests" / "data"
DECODERS = DATA / "decoders"
TRANSCRIBE = "can you transcribe the speech into a written format?"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, or one processor would idle while another does the last of them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """No later search for garbage goes through what was collected, most of a second each time."""
    gc.freeze()


def find_recording(name: str) -> Path:
    """A recording by its name in the reference, `synthetic/...` or `human/...`; the human ones are
    not ours to bundle and are tested where they lie beside the checkout."""
    folder, file = name.split("/")
    if folder == "synthetic":
        return DATA / "audio" / file
    path = ROOT.parent / "shared" / "audio" / folder / file
    if not path.exists():
        pytest.skip(f"{name} is not on this machine")
    return path


@pytest.fixture(scope="session")
def reference() -> dict:
    """Texts and token ids that the reference implementation gives, float32, batch 1."""
    return json.loads((DATA / "reference" / "tiny_granite_reference.json").read_text())


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Arrays of every stage for three recordings, from the reference implementation."""
    with np.load(DATA / "reference" / "tiny_granite_golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def tiny():
    """(model, processor) of the bundled checkpoint in float32."""
    return load(TINY, dtype=mx.float32)


@pytest.fixture(scope="session")
def tiny_without_bpe(tmp_path_factory):
    """The same of the bundled checkpoint without its BPE head."""
    folder = tmp_path_factory.mktemp("without") / "bpe-head"
    folder.mkdir()
    for file in TINY.iterdir():
        if file.name != "out_llm.safetensors":
            (folder / file.name).symlink_to(file)
    return load(folder, dtype=mx.float32)


@pytest.fixture(scope="session")
def tiny_s2t():
    """The same of the bundled Speech2Text."""
    return load(TINY_S2T, dtype=mx.float32)


@pytest.fixture(scope="session")
def forty_seconds(tmp_path_factory) -> Path:
    """The beginning of the long recording, of ten sentences."""
    path = tmp_path_factory.mktemp("recordings") / "forty.wav"
    samples, rate = soundfile.read(DATA / "audio" / "long.flac", frames=40 * 16000, dtype="int16")
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture
def tiny_copy(tmp_path) -> Path:
    """A copy of the bundled checkpoint, to be damaged."""
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


@pytest.fixture
def s2t_copy(tmp_path) -> Path:
    """The same of the bundled Speech2Text."""
    return Path(shutil.copytree(TINY_S2T, tmp_path / "checkpoint"))


@pytest.fixture
def tiny_with_60_tokens(tiny_copy) -> Path:
    """A copy whose context is full after four seconds of speech."""
    config = json.loads((tiny_copy / "config.json").read_text())
    text_config = {**config["text_config"], "max_position_embeddings": 60}
    edit_json(tiny_copy / "config.json", text_config=text_config)
    return tiny_copy


def speech_inputs(processor, *names: str, instruction: str = TRANSCRIBE) -> dict[str, mx.array]:
    """Inputs for a batch of recordings, one prompt each."""
    audio = [load_audio(find_recording(name)) for name in names]
    return processor([processor.speech_prompt(instruction)] * len(names), audio)


def chunks_of(family, recording, options: ChunkOptions, **wanted) -> Iterator[AudioChunk]:
    """Those that a family finds in a recording, see `SpeechFamily.chunks`."""
    return filter(None, family.chunks(recording, options, **wanted))


def random_decoder(seed: int = 1, **options):
    """A small Llama whose answers wander: weights of a size at which layers outweigh embeddings."""
    small = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**(small | options)))
    keys = mx.random.split(mx.random.key(seed), len(tree_flatten(model.parameters())))
    weights = [
        (name, mx.random.normal(value.shape, key=key) * (1.2 * value.shape[-1] ** -0.5))
        for (name, value), key in zip(tree_flatten(model.parameters()), keys, strict=True)
        if value.ndim > 1
    ]
    model.load_weights(weights, strict=False)
    return model


def output_dtypes(model, monkeypatch) -> list[tuple[str, mx.Dtype]]:
    """Appended to with the class and the type of the output of each of its modules called."""
    outputs = []

    def record(kind):
        original = kind.__call__

        def spy(layer, *args, **kwargs):
            out = original(layer, *args, **kwargs)
            if isinstance(out, mx.array):
                outputs.append((type(layer).__name__, out.dtype))
            return out

        monkeypatch.setattr(kind, "__call__", spy)

    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    for kind in kinds - set(type(model).__mro__):
        if "__call__" in kind.__dict__:
            record(kind)
    return outputs


def edit_json(path: Path, **changes) -> None:
    """Change fields of a JSON file; None removes one."""
    data = json.loads(path.read_text()) if path.exists() else {}
    data.update(changes)
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def resave(folder, change) -> None:
    """Rewrite the weights with `change`, a function from dict to dict."""
    file = folder / "model.safetensors"
    weights = {k: v + 0 for k, v in mx.load(str(file)).items()}
    mx.eval(weights)
    mx.save_safetensors(str(file), change(weights))


def transcript(folder) -> str:
    """What the model of a folder makes of one recording, "unlock the back gate" if it is whole."""
    model, processor = load(folder, dtype=mx.float32)
    inputs = speech_inputs(processor, "synthetic/flite_08.flac")
    output = model.generate(**inputs, max_new_tokens=30)
    return processor.decode(
        output[0, inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True
    )


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """The text decoder of the bundled checkpoint, as a checkpoint of its own."""
    folder = tmp_path_factory.mktemp("text") / "tiny-granite"
    folder.mkdir()
    text_config = json.loads((TINY / "config.json").read_text())["text_config"]
    edit_json(folder / "config.json", **text_config, architectures=["GraniteForCausalLM"])
    weights = mx.load(str(TINY / "model.safetensors"))
    prefix = "language_model."
    weights = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A fake Hub that this process takes for the real one, with an empty cache and no token."""
    for name in list(os.environ):
        if name.startswith("HF_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    with FakeHub() as fake:
        url_template = fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": fake.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": url_template,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "AGENT_HARNESSES_PATH": str(home / "agents.json"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(_detect_agent, "_registry", _detect_agent._EMPTY_REGISTRY)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between retries
        monkeypatch.setattr(socket, "getaddrinfo", only_loopback(socket.getaddrinfo))
        _http.close_session()
        yield fake
        _http.close_session()


def only_loopback(getaddrinfo):
    def guarded(host, *args, **kwargs):
        assert host in ("127.0.0.1", b"127.0.0.1"), f"a request to {host}"
        return getaddrinfo(host, *args, **kwargs)

    return guarded
