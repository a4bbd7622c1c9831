"""Speech2Text from a recording to its transcript, in the library and on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import DATA, ROOT, edit_json, find_recording
from pytorch_files import save_pytorch_bin

from mlx_speech import (
    UnsupportedOptionError,
    load,
    load_audio,
    stream_transcribe,
    transcribe,
)
from mlx_speech.transcribe import main

TINY = ROOT / "examples" / "tiny-s2t"
REFERENCE = json.loads((DATA / "reference" / "tiny_s2t_reference.json").read_text())
FRENCH = {"task": "translate", "target_language": "fr"}
SHORT = "synthetic/espeak_03.flac"


@pytest.fixture(scope="module")
def loaded():
    return load(TINY, dtype=mx.float32)


@pytest.mark.parametrize("num_beams", [1, 5])
@pytest.mark.parametrize("language", ["en", "fr"])
@pytest.mark.parametrize("name", REFERENCE["files"])
def test_reference(loaded, name, language, num_beams):
    """The reference's token ids and text, from the recording."""
    options = FRENCH if language == "fr" else {}
    transcript = transcribe(find_recording(name), loaded, num_beams=num_beams, **options)
    (segment,) = transcript.segments
    expected = said(name, language, num_beams)
    assert [2, *segment.tokens, 2] == expected["ids"]
    assert transcript.text == expected["text"]
    assert not segment.truncated
    assert transcript.language == ("fr" if language == "fr" else None)


def said(name: str, language: str, num_beams: int) -> dict:
    """What the reference makes of a recording: ids and text."""
    return REFERENCE["files"][name][f"{language}_{'greedy' if num_beams == 1 else 'beam5'}"]


def test_beams_are_the_default(loaded):
    """generation_config.json says five; streaming, which cannot have them, does without."""
    path = find_recording(SHORT)
    assert transcribe(path, loaded) == transcribe(path, loaded, num_beams=5)
    pieces = list(stream_transcribe(path, loaded))
    assert len(pieces) > 3
    assert "".join(pieces) == transcribe(path, loaded, num_beams=1).text


def test_pytorch_bin(tmp_path):
    """The same text from `pytorch_model.bin`, which most of these repositories ship."""
    folder = Path(shutil.copytree(TINY, tmp_path / "bin"))
    weights = dict(mx.load(str(folder / "model.safetensors")))
    (folder / "model.safetensors").unlink()
    save_pytorch_bin(folder / "pytorch_model.bin", weights)
    path = find_recording(SHORT)
    assert transcribe(path, load(folder)).text == transcribe(path, load(TINY)).text


@pytest.fixture(scope="module")
def recording() -> mx.array:
    """Three sentences with a short pause between them."""
    gap = mx.zeros(6400)
    parts = [load_audio(find_recording(f"synthetic/espeak_0{n}.flac")) for n in (3, 1, 2)]
    return mx.concatenate([parts[0], gap, parts[1], gap, parts[2]])


@pytest.fixture(scope="module")
def short_model(tmp_path_factory):
    """One that hears 5 s at most."""
    folder = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("s2t") / "short"))
    edit_json(folder / "config.json", max_source_positions=500)
    return load(folder)


class TestLong:
    def test_cut_and_whole(self, recording, short_model, loaded):
        """Cut where it is quiet, each part as if alone, nothing lost."""
        transcript = transcribe(recording, short_model, sampling_rate=16000, num_beams=1)
        alone = [
            transcribe(find_recording(f"synthetic/espeak_0{n}.flac"), loaded, num_beams=1).text
            for n in (3, 1, 2)
        ]
        assert len(transcript.segments) == 3
        assert [s.text for s in transcript.segments] == alone
        assert transcript.text == " ".join(alone)
        assert transcript.duration == pytest.approx(recording.size / 16000)
        ends = [s.end for s in transcript.segments]
        assert [s.start for s in transcript.segments] == [0.0, *ends[:-1]]
        assert ends[-1] == transcript.duration

    def test_streamed(self, recording, short_model):
        whole = transcribe(recording, short_model, sampling_rate=16000, num_beams=1)
        pieces = list(stream_transcribe(recording, short_model, sampling_rate=16000))
        assert "".join(pieces) == whole.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "en"}, "language: Speech2Text models take no instruction"),
        ({"punctuate": True}, "punctuate: "),
        ({"prompt": "hello"}, "prompt: "),
        ({"task": "translate", "target_language": "ja"}, "does not translate to 'ja', but to pt"),
    ],
)
def test_unsupported(loaded, options, message):
    with pytest.raises(UnsupportedOptionError, match=message):
        transcribe(find_recording(SHORT), loaded, **options)


class TestCommandLine:
    def test_text(self, capsys):
        path = str(find_recording(SHORT))
        assert main([path, "--model", str(TINY)]) == 0
        assert capsys.readouterr().out == said(SHORT, "en", 5)["text"] + "\n"

    @pytest.mark.parametrize("target", ["fr", "French"])
    def test_translation(self, capsys, target):
        options = ["--task", "translate", "--target-language", target, "--num-beams", "5"]
        assert main([str(find_recording(SHORT)), "--model", str(TINY), *options]) == 0
        assert capsys.readouterr().out == said(SHORT, "fr", 5)["text"] + "\n"

    def test_stream_and_json(self, capsys, tmp_path):
        path = str(find_recording(SHORT))
        assert main([path, "--model", str(TINY), "--stream"]) == 0
        assert capsys.readouterr().out == said(SHORT, "en", 1)["text"] + "\n"
        options = ["-f", "json", "-o", str(tmp_path)]
        assert main([path, "--model", str(TINY), *options]) == 0
        document = json.loads((tmp_path / "espeak_03.json").read_text())
        assert document["text"] == said(SHORT, "en", 5)["text"]

    def test_refused_option(self, capsys):
        assert main([str(find_recording(SHORT)), "--model", str(TINY), "--punctuate"]) == 1
        assert capsys.readouterr().err.count("\n") == 1
