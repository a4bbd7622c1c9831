"""A family is three files and a row: with these alone, a toy does what the others do."""

from __future__ import annotations

import json
import re

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, ROOT
from mlx_speech.convert import convert

from mlx_speech import (
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    LiveTranscriber,
    UnsupportedOptionError,
    load,
    load_audio,
    loading,
    models,
    processing,
    stream_transcribe,
    transcribe,
    transcription,
)
from mlx_speech.cli.released import list_models
from mlx_speech.processing.protocols import SpeechProcessor
from mlx_speech.profiling.profile import profile_model
from mlx_speech.server.capabilities import capabilities
from mlx_speech.transcription.family import ChunkDecoder, GenerativeFamily

CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint, in a house that has three more files and the row that CONTRIBUTING shows."""
    for package in (models, processing, transcription):
        name = package.__name__.rpartition(".")[2]
        files = ROOT / "tests" / "toy_family" / name
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(files)])
    (row,) = re.findall(r'^   ("x": .*),$', CONTRIBUTING, re.MULTILINE)
    row = row.replace('"x"', '"toy"').replace('"X', '"Toy')
    for name, family in eval(f"{{{row}}}", vars(loading)).items():
        monkeypatch.setitem(loading.ARCHITECTURES, name, family)
    config = {"model_type": "toy", "vocab_size": 27, "eos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {"encoder.weight": mx.array([[1.0]]), "encoder.bias": mx.array([-3.0])}
    weights["embed_tokens.weight"] = 50 * mx.eye(27)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    return tmp_path


@pytest.fixture
def toy(folder):
    return load(folder)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "translate", "target_language": "fr"}, "translation"),
        ({"language": "fr"}, "language"),
        ({"prompt": "Write numbers."}, "takes no instruction"),
        ({"keywords": ["Ada"]}, "keywords"),
        ({"punctuate": True}, "punctuation"),
        ({"speakers": True}, "speakers"),
        ({"ctc_only": True}, "CTC head"),
        ({"skip_editor": True}, "edit drafts"),
    ],
)
def test_what_it_cannot_do(toy, sentences, options, message):
    with pytest.raises(UnsupportedOptionError, match=message):
        transcribe(sentences, toy, sampling_rate=16000, **options)
    with pytest.raises(UnsupportedOptionError, match=message):
        # when it is called, not when the first text is taken
        stream_transcribe(sentences, toy, sampling_rate=16000, **options)


def test_it_is_no_live_model(toy):
    with pytest.raises(UnsupportedOptionError, match="CTC head"):
        LiveTranscriber(toy)


def test_everybody_else_knows_it(folder, toy):
    assert "toy" in list_models()
    assert type(AutoModelForSpeechSeq2Seq.from_pretrained(folder)) is type(toy[0])
    assert type(AutoProcessor.from_pretrained(folder)) is type(toy[1])
    with pytest.raises(UnsupportedOptionError, match="no feature extractor"):
        AutoFeatureExtractor.from_pretrained(folder)
    said = {"languages": ["en"], "target_languages": [], "punctuate": False, "keywords": False}
    assert capabilities(*toy) == {**said, "speakers": False, "words": False, "live": False}


def test_it_is_converted(folder, sentences, tmp_path):
    convert(folder, tmp_path / "converted", dtype="float16", progress=False)
    transcript = transcribe(sentences, tmp_path / "converted", sampling_rate=16000)
    assert transcript.text == "short long short"


def test_how_fast_it_is(toy):
    profile = profile_model(toy, [str(DATA / "audio" / "espeak_06.flac")], 1e9, runs=1)
    assert profile.decoding[0].batch == 1
    assert profile.encoding.seconds > 0


def members(protocol) -> set[str]:
    """Names of what a protocol asks for, those of its bases included."""
    held = [{*vars(base), *vars(base).get("__annotations__", {})} for base in protocol.__mro__]
    return {name for name in set().union(*held) if not name.startswith("_")}


def test_what_contributing_says_of_a_family():
    rows = re.findall(r"^   \| `(\w+)", CONTRIBUTING, re.MULTILINE)
    processor = rows[: rows.index("__init__")]
    assert sorted(processor) == sorted({*members(SpeechProcessor), "from_pretrained"})
    assert sorted(rows[len(processor) :]) == sorted({*members(GenerativeFamily), "__init__"})
    (decoder,) = re.findall(r"A `ChunkDecoder` of its own.*?\n\n", CONTRIBUTING, re.DOTALL)
    assert members(ChunkDecoder) <= set(re.findall(r"`(\w+)", decoder))
