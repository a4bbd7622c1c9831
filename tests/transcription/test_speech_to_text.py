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
    InputError,
    UnsupportedOptionError,
    load,
    load_audio,
    stream_transcribe,
    transcribe,
)
from mlx_speech.cli.transcribe import main

TINY = ROOT / "examples" / "tiny-s2t"
REFERENCE = json.loads((DATA / "reference" / "tiny_s2t_reference.json").read_text())
FRENCH = {"task": "translate", "target_language": "fr"}
SHORT = "synthetic/espeak_03.flac"


@pytest.fixture(scope="module")
def loaded():
    return load(TINY, dtype=mx.float32)


def streamed(*args, **options) -> tuple[list[str], object]:
    """Pieces of text and transcript of `stream_transcribe`."""
    stream, pieces = stream_transcribe(*args, **options), []
    while True:
        try:
            pieces.append(next(stream).text)
        except StopIteration as end:
            return pieces, end.value


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


def test_segments_are_no_longer_than_the_model_takes(loaded, monkeypatch):
    monkeypatch.setattr(loaded[1], "max_seconds", 3.0)
    samples = load_audio(DATA / "audio" / "long.flac")[: 12 * 16000]
    segments = transcribe(samples, loaded, sampling_rate=16000).segments
    assert 2 < max(segment.end - segment.start for segment in segments) <= 3


def said(name: str, language: str, num_beams: int) -> dict:
    """What the reference makes of a recording: ids and text."""
    return REFERENCE["files"][name][f"{language}_{'greedy' if num_beams == 1 else 'beam5'}"]


def test_beams_are_the_default(loaded):
    """generation_config.json says five; streaming, which cannot have them, does without."""
    path = find_recording(SHORT)
    assert transcribe(path, loaded) == transcribe(path, loaded, num_beams=5)
    pieces, _ = streamed(path, loaded)
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
    """One that hears 4.5 s at most."""
    folder = Path(shutil.copytree(TINY, tmp_path_factory.mktemp("s2t") / "short"))
    edit_json(folder / "config.json", max_source_positions=450)
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
        times = [time for s in transcript.segments for time in (s.start, s.end)]
        assert times == sorted(times)
        assert times[-1] <= transcript.duration

    def test_streamed(self, recording, short_model):
        whole = transcribe(recording, short_model, sampling_rate=16000, num_beams=1)
        pieces, _ = streamed(recording, short_model, sampling_rate=16000)
        assert "".join(pieces) == whole.text


class TestEnd:
    @pytest.mark.parametrize("stop", ["e", ["zzz", "t"], [" the", "e"], " ", "the", ["s", "k"]])
    def test_stop_strings(self, recording, short_model, stop):
        """Each segment ends before the first of them, and none is there by the limit."""
        options = {"sampling_rate": 16000, "num_beams": 1}
        plain = transcribe(recording, short_model, **options)
        stops = [stop] if isinstance(stop, str) else stop
        expected = []
        for segment in plain.segments:
            found = [segment.text.find(s) for s in stops if s in segment.text]
            expected.append(segment.text[: min(found, default=None)].strip())
        whole = transcribe(recording, short_model, stop_strings=stop, **options)
        assert [s.text for s in whole.segments] == expected != [s.text for s in plain.segments]
        assert not any(s.truncated for s in whole.segments)
        pieces, transcript = streamed(recording, short_model, stop_strings=stop, **options)
        assert "".join(pieces) == whole.text
        one_by_one = transcribe(recording, short_model, stop_strings=stop, batch_size=1, **options)
        assert transcript == one_by_one
        for segment, before in zip(whole.segments, plain.segments, strict=True):
            assert segment.tokens == before.tokens[: len(segment.tokens)]

    def test_stop_strings_with_beams(self, loaded):
        (segment,) = transcribe(find_recording(SHORT), loaded, stop_strings="e").segments
        assert "e" not in segment.text
        assert not segment.truncated

    def test_a_stop_string_with_the_last_token_allowed(self, loaded):
        """Not cut off: the limit came together with the end."""
        path = find_recording(SHORT)
        text = transcribe(path, loaded, num_beams=1).text
        options = {"stop_strings": text[6:9], "num_beams": 1}
        (segment,) = transcribe(path, loaded, **options).segments
        limit = len(segment.tokens)
        (same,) = transcribe(path, loaded, max_new_tokens=limit, **options).segments
        assert same == segment
        (less,) = transcribe(path, loaded, max_new_tokens=limit - 1, **options).segments
        assert less.truncated

    @pytest.mark.parametrize("limit", [2, 5])
    def test_max_length(self, loaded, limit):
        """It counts the token that an answer starts from."""
        path = find_recording(SHORT)
        whole = transcribe(path, loaded, max_length=limit, num_beams=1)
        (segment,) = whole.segments
        assert len(segment.tokens) == limit - 1
        assert segment.truncated
        assert whole == transcribe(path, loaded, max_new_tokens=limit - 1, num_beams=1)
        pieces, transcript = streamed(path, loaded, max_length=limit)
        assert "".join(pieces) == whole.text
        assert transcript == whole

    def test_limits_of_both_kinds(self, loaded):
        with pytest.raises(InputError, match="max_length or max_new_tokens, not both"):
            transcribe(find_recording(SHORT), loaded, max_length=5, max_new_tokens=5)

    def test_an_end_with_a_text(self, loaded):
        """A token that ends the answer is not part of its text, special or not."""
        path = find_recording(SHORT)
        ids = transcribe(path, loaded, num_beams=1).segments[0].tokens
        whole = transcribe(path, loaded, num_beams=1, eos_token_id=ids[6])
        assert whole.segments[0].tokens == ids[: ids.index(ids[6])]
        pieces, transcript = streamed(path, loaded, eos_token_id=ids[6])
        assert "".join(pieces) == whole.text
        assert transcript == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "en"}, "language: Speech2Text models take no instruction"),
        ({"keywords": ["MLX"]}, "keywords: Speech2Text models take no instruction"),
        ({"punctuate": True}, "punctuate: "),
        ({"prompt": "hello"}, "prompt: "),
        ({"task": "translate", "target_language": "ja"}, "^target_language: .* to 'ja', but to pt"),
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
