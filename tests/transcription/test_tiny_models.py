"""Granite Speech NAR and TurboCTC with the tiny models trained for them: what the reference says to
the bundled recordings, however they are transcribed."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import tiny_nar
from conftest import DATA, edit_json

from convert import convert
from mlx_speech import Segment, Transcript, load, load_audio, stream_transcribe, transcribe
from mlx_speech.transcription.word_errors import word_errors

AUDIO = DATA / "audio"
MANIFEST = map(json.loads, (AUDIO / "manifest.jsonl").read_text().splitlines())
LINES = {line["file"]: line for line in MANIFEST}
LONG = AUDIO / "long.flac"
CUTS = {"chunk_duration": 9, "min_silence": 0.4}


@dataclass
class Tiny:
    """A model, and what the reference makes of some recordings: samples of a file, what is said in
    them, ids and text."""

    name: str
    folder: Path
    loaded: tuple[Any, Any]
    reference: list[dict[str, Any]]

    def rows(self, waves: list[mx.array]) -> list[list[int]]:
        """What the model makes of a batch."""
        model, processor = self.loaded
        return model.generate(**processor(waves)).tolist()

    def ids(self, row: list[int]) -> list[int]:
        """Without what fills it up, and what stands for nothing."""
        nothing = self.loaded[1].tokenizer.pad_token_id
        if self.name == "turboctc":  # a label for every frame
            row = [label for label, _ in groupby(row)]
        return [token for token in row if token != nothing]

    def converted(self, folder: Path, recipe: str) -> tuple[Any, Any]:
        """The model with fewer bits."""
        how = {"quantize": True, "quant_predicate": recipe, "q_group_size": 32}
        (result,) = convert(self.folder, folder / recipe, **how)
        return load(result.folder, dtype=mx.float32)


def wave(entry: dict[str, Any]) -> mx.array:
    return load_audio(AUDIO / entry["file"])[slice(*entry["samples"])]


def transcript(entry: dict[str, Any], loaded: tuple[Any, Any], **options: Any) -> Transcript:
    return transcribe(wave(entry), loaded, sampling_rate=16000, **options)


def words(text: str) -> str:
    return " ".join(text.split())


def tiny_model(name: str, tmp_path_factory) -> Tiny:
    folder = DATA / "tiny-turboctc"
    if name == "nar":
        folder = tiny_nar.checkpoint(tmp_path_factory.mktemp("tiny-nar"))
    reference = json.loads((DATA / "reference" / f"tiny_{name}_reference.json").read_text())
    return Tiny(name, folder, load(folder, dtype=mx.float32), reference)


@pytest.fixture(scope="module", params=["turboctc", "nar"])
def tiny(request, tmp_path_factory) -> Tiny:
    return tiny_model(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def nar(tmp_path_factory) -> Tiny:
    return tiny_model("nar", tmp_path_factory)


def test_ids(tiny):
    """Of every recording alone."""
    for entry in tiny.reference:
        (row,) = tiny.rows([wave(entry)])
        assert tiny.ids(row) == entry["ids"]
        assert tiny.loaded[1].decode(row).strip() == entry["text"]


def test_ids_of_batches(tiny):
    """Of recordings of different lengths, filled up to the longest."""
    entries = [entry for entry in tiny.reference if entry["samples"][1] - entry["samples"][0] < 2e5]
    assert len(entries) > 40
    for start in range(0, len(entries), 9):
        batch = entries[start : start + 9]
        rows = tiny.rows([wave(entry) for entry in batch])
        assert list(map(tiny.ids, rows)) == [entry["ids"] for entry in batch]


def test_transcripts(tiny):
    """Cut where the pipeline cuts, in whatever parts the encoder comes."""
    for entry in tiny.reference:
        assert transcript(entry, tiny.loaded).text == words(entry["text"])


def test_another_number_for_the_blank(tmp_path):
    """Which label it is, the configuration tells."""
    original, last = DATA / "tiny-turboctc", 159
    folder = Path(shutil.copytree(original, tmp_path / "other"))
    edit_json(folder / "config.json", pad_token_id=last)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["id"] = last
    tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"] |= {tokens[0]: last, tokens[last]: 0}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    tensors: dict[str, Any] = dict(mx.load(str(original / "model.safetensors")))
    order = mx.array([last, *range(1, last), 0])
    for name in ("encoder.out.weight", "encoder.out.bias"):
        tensors[name] = tensors[name][order]
    tensors["encoder.out_mid.weight"] = tensors["encoder.out_mid.weight"][:, order]
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})

    found, expected = (
        transcribe(LONG, load(each, dtype=mx.float32), word_timestamps=True)
        for each in (folder, original)
    )
    assert len(found.segments) > 20
    for segment in found.segments:
        segment.tokens = [{0: last, last: 0}.get(token, token) for token in segment.tokens]
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["silence.flac", "short.wav"])
def test_nothing_said(tiny, name):
    assert transcribe(AUDIO / name, tiny.loaded).text == ""
    assert "".join(delta.text for delta in stream_transcribe(AUDIO / name, tiny.loaded)) == ""


def assert_same(found: Transcript, expected: Transcript) -> None:
    """But for what rounding in batches does to probabilities."""
    for one, other in zip(found.segments, expected.segments, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)
        assert without_probabilities(one) == without_probabilities(other)


def without_probabilities(segment: Segment) -> Segment:
    words = [replace(word, probability=0.0) for word in segment.words]
    return replace(segment, avg_logprob=0.0, words=words)


@pytest.fixture(scope="module")
def whole(tiny) -> Transcript:
    """What is said in the long recording, its sentences one by one."""
    return transcribe(LONG, tiny.loaded, batch_size=1, word_timestamps=True, **CUTS)


def test_long_recording(tiny, whole):
    """Each sentence found once, in batches of any size."""
    options = {"word_timestamps": True, **CUTS}
    for batch_size in (3, 8):
        found = transcribe(LONG, tiny.loaded, batch_size=batch_size, **options)
        assert_same(found, whole)
    known = LINES[LONG.name]["segments"]
    assert len(whole.segments) == len(known)
    errors = 0
    for segment, (start, end, text) in zip(whole.segments, known, strict=True):
        assert abs(segment.start - start) <= 0.3
        assert abs(segment.end - end) <= 0.3
        errors += word_errors(text, segment.text)
    assert errors < 0.1 * len(LINES[LONG.name]["text"].split())


def test_stream(tiny, whole):
    """The pieces are the transcript's text, whose segments come one by one, whichever thread asks
    for each, as web servers have it that read a generator in a pool."""
    options = {"word_timestamps": True, **CUTS}

    def streaming():
        yield (yield from stream_transcribe(LONG, tiny.loaded, **options))

    stream, pieces = streaming(), []
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        pools = cycle([one, other])
        while piece := next(pools).submit(next, stream, None).result():
            pieces.append(piece)
    *deltas, found = pieces
    assert_same(found, whole)
    assert "".join(delta.text for delta in deltas) == found.text
    assert [delta.segment for delta in deltas] == found.segments


def test_word_times(tiny):
    """How far from where the synthesiser put them: TurboCTC says many a word early."""
    errors = []
    for entry in tiny.reference:
        known = LINES[entry["file"]]["words"]
        if known and entry["text"] == entry["said"]:
            found = transcript(entry, tiny.loaded, word_timestamps=True)
            placed = [word for segment in found.segments for word in segment.words]
            for word, (text, start, end) in zip(placed, known, strict=True):
                assert word.text == text
                errors += [abs(word.start - start), abs(word.end - end)]
    assert len(errors) >= 40
    assert np.mean(errors) < {"turboctc": 0.065, "nar": 0.035}[tiny.name]


def test_in_8_bits(tiny, tmp_path):
    """What is right stays so; where the model hesitates it may say something else."""
    quantized = tiny.converted(tmp_path, "speech_8bit")
    right = 0
    for entry in tiny.reference:
        if entry["samples"][0] == 0 and words(entry["text"]) == entry["said"]:
            assert transcript(entry, quantized).text == entry["said"]
            right += bool(entry["said"])
    assert right >= 13


class TestEditing:
    def test_drafts(self, nar):
        """The encoder's head of tokens alone; the editor mends some of its mistakes."""
        mended = 0
        for entry in nar.reference:
            draft = transcript(entry, nar.loaded, ctc_only=True)
            tokens = [token for segment in draft.segments for token in segment.tokens]
            assert tokens == entry["draft_ids"]
            mended += words(entry["text"]) == entry["said"] != draft.text
        assert mended >= 3

    def test_in_4_bits(self, nar, tmp_path):
        """The editor leaves some mistakes, and makes none."""
        quantized = nar.converted(tmp_path, "speech_4bit")
        mended = 0
        for entry in nar.reference:
            if entry["draft_ids"] == entry["ids"]:
                continue
            found = transcript(entry, quantized).text
            assert found in (entry["text"], transcript(entry, quantized, ctc_only=True).text)
            mended += found == entry["text"]
        assert mended >= 1
