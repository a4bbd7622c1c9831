"""A family is three files and a row: one from outside the package transcribes like the others."""

from __future__ import annotations

import json
import re

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, ROOT

from mlx_speech import UnsupportedOptionError, load, load_audio, stream_transcribe, transcribe
from mlx_speech.loading import ARCHITECTURES, Architecture
from mlx_speech.transcription.family import ChunkDecoder, GenerativeFamily

ROW = Architecture(
    models=("toy_family.model:ToyModel",),
    processor="toy_family.processing:ToyProcessor",
    transcription="toy_family.transcription:ToyTranscription",
)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "toy", ROW)
    config = {"model_type": "toy", "architectures": ["ToyModel"], "eos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"boundary": mx.array([3.0])})
    return load(tmp_path)


@pytest.fixture(scope="module")
def sentences() -> np.ndarray:
    """One of under two seconds, one of over four, the first again; with pauses between."""
    short, long = (load_audio(DATA / "audio" / f"espeak_{k}.flac") for k in ("06", "04"))
    assert short.size < 3 * 16000 < long.size
    pause = mx.zeros(24000)
    return np.array(mx.concatenate([short, pause, long, pause, short]))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_it_transcribes(toy, sentences, batch_size):
    transcript = transcribe(sentences, toy, sampling_rate=16000, batch_size=batch_size)
    assert [segment.text for segment in transcript.segments] == ["short", "long", "short"]
    assert (transcript.text, transcript.language) == ("short long short", "en")
    assert not any(segment.truncated for segment in transcript.segments)
    assert transcript.segments[1].start == pytest.approx(3.14, abs=0.3)


def test_it_streams(toy, sentences):
    deltas = stream_transcribe(sentences, toy, sampling_rate=16000)
    assert "".join(delta.text for delta in deltas) == "short long short"


def test_what_it_cannot_do(toy, sentences):
    with pytest.raises(UnsupportedOptionError, match="toys do not translate"):
        transcribe(sentences, toy, sampling_rate=16000, task="translate", target_language="fr")
    with pytest.raises(UnsupportedOptionError, match="toys do not translate"):
        # when it is called, not when the first text is taken
        stream_transcribe(
            sentences, toy, sampling_rate=16000, task="translate", target_language="fr"
        )


def test_it_is_listed(toy):
    from mlx_speech.cli.released import list_models

    assert "toy" in list_models()


def members(protocol) -> set[str]:
    """Names of what a protocol asks for, those of its bases included."""
    held = [{*vars(base), *vars(base).get("__annotations__", {})} for base in protocol.__mro__]
    return {name for name in set().union(*held) if not name.startswith("_")}


def test_what_contributing_says_of_a_family():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    table = re.findall(r"^   \| `(\w+)", text, re.MULTILINE)
    assert sorted(table) == sorted({*members(GenerativeFamily), "__init__"})
    (decoder,) = re.findall(r"A `ChunkDecoder` of its own.*?\n\n", text, re.DOTALL)
    assert members(ChunkDecoder) <= set(re.findall(r"`(\w+)", decoder))
