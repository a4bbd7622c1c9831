"""The check of a conversion: what it measures, what it refuses, and how it is shown."""

from __future__ import annotations

import errno
import functools
import gc
import itertools
import re
import shutil
import weakref
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import DATA, ROOT, TINY, TINY_S2T, find_recording

import convert.check
from convert.check import (
    CheckReport,
    Difference,
    Loaded,
    RecordingCheck,
    bundled_recordings,
    check,
    divergences,
)
from convert.report import check_markdown, check_table, fitting_name
from mlx_speech import load, load_audio, transcribe
from mlx_speech.errors import AudioError, CheckpointError, UnsupportedOptionError
from mlx_speech.transcription.pipeline import prepare
from mlx_speech.transcription.word_errors import word_error_rate, word_errors

GATE = find_recording("synthetic/flite_08.flac")


def damaged(source: Path, folder: Path) -> Path:
    """A copy whose matrices are a little off."""
    shutil.copytree(source, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    keys = dict(zip(weights, mx.random.split(mx.random.key(0), len(weights)), strict=True))
    for name, value in weights.items():
        if value.ndim == 2:
            noise = 1 + 0.15 * mx.random.normal(value.shape, key=keys[name])
            weights[name] = (value * noise).astype(value.dtype)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def check_one(original: Path, converted: Path, *args) -> CheckReport:
    (report,) = check(original, [converted], *args)
    return report


@pytest.fixture(scope="module")
def off(tmp_path_factory) -> Path:
    return damaged(TINY, tmp_path_factory.mktemp("off") / "model")


@pytest.fixture(scope="module")
def report(off):
    return check_one(TINY, off, [GATE])


# Word errors


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("", "", 0),
        ("a b c", "a b c", 0),
        ("a  b\nc", "a b c", 0),
        ("a b c", "", 3),
        ("", "a b", 2),
        ("a b c", "a c", 1),
        ("a c", "a b c", 1),
        ("a b c", "a x c", 1),
        ("a b c d", "b c d a", 2),
        ("Yes, a", "yes a", 1),
    ],
)
def test_word_errors(reference, hypothesis, errors):
    assert word_errors(reference, hypothesis) == errors


def test_word_errors_are_the_fewest():
    """As the definition has it, over all pairs of short texts."""

    @functools.cache
    def fewest(a: tuple, b: tuple) -> int:
        if not a or not b:
            return len(a) + len(b)
        kept = fewest(a[1:], b[1:]) + (a[0] != b[0])
        return min(kept, fewest(a[1:], b) + 1, fewest(a, b[1:]) + 1)

    texts = [text for n in range(4) for text in itertools.product("abc", repeat=n)]
    for a, b in itertools.product(texts, repeat=2):
        assert word_errors(" ".join(a), " ".join(b)) == fewest(a, b)


def test_word_error_rate():
    assert word_error_rate(1, 4) == 25
    assert word_error_rate(0, 0) == 0
    assert word_error_rate(2, 0) == 200


# What is measured


def test_texts_and_word_errors(report, off):
    (recording,) = report.recordings
    assert recording.name == "flite_08.flac"
    assert recording.original == "unlock the back gate"
    assert recording.converted == transcribe(GATE, load(off)).text != recording.original
    assert report.total.words == 4
    assert report.total.errors == word_errors(recording.original, recording.converted) > 0
    assert report.total.wer == 25 * report.total.errors


def test_stages_and_divergence(report, off):
    """Against another way to compute them: whole prompts at once, in NumPy and float64."""
    tokens = transcribe(GATE, load(TINY)).segments[0].tokens
    stages = []
    for folder in (TINY, off):
        model, processor = load(folder)
        inputs = processor.speech_inputs(load_audio(GATE))
        ids = mx.concatenate([inputs["input_ids"], mx.array([tokens])], axis=1)
        audio = model(ids, input_features=inputs["input_features"])
        encoded = model.encoder(inputs["input_features"]).last_hidden_state
        logits = np.array(audio.logits[0, -1 - len(tokens) :], np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        arrays = encoded, audio.audio_hidden_states, logits, logprobs
        stages.append([np.array(a, np.float64) for a in arrays])
    *before, p = stages[0]
    *after, q = stages[1]
    total = report.total
    assert total.positions == len(tokens) + 1
    expected = [
        np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(before, after, strict=True)
    ]
    found = [total.relative_error(s) for s in ("encoder", "projector", "logits")]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert min(expected) > 0.01
    divergence = (np.exp(p) * (p - q)).sum(axis=-1).mean()
    assert divergence > 0.01
    np.testing.assert_allclose(total.kl, divergence, rtol=1e-3)


def test_parts_of_a_recording_count_together(off, report, monkeypatch):
    def prepare_twice(audio, model):
        job = prepare(audio, model)
        chunks = list(job.chunks) * 2
        job.find_chunks = lambda recording: chunks
        return job

    monkeypatch.setattr(convert.check, "prepare", prepare_twice)
    total, whole = check_one(TINY, off, [GATE]).total, report.total
    assert total.words == 2 * whole.words
    assert total.positions == 2 * whole.positions
    assert total.kl == pytest.approx(whole.kl, rel=1e-4)
    for stage in ("encoder", "projector", "logits"):
        expected = pytest.approx(whole.relative_error(stage), rel=1e-4)
        assert total.relative_error(stage) == expected


def test_recordings_count_by_their_length():
    first = Difference(9, 0, {"encoder": (1.0, 100.0)}, 0.0, 30)
    second = Difference(1, 1, {"encoder": (8.0, 0.0)}, 4.0, 10)
    rows = [RecordingCheck(name, "", "", d) for name, d in (("a", first), ("b", second))]
    total = CheckReport(Loaded(1, 1.0), Loaded(1, 1.0), rows, "CPU").total
    assert total.wer == 10
    assert total.kl == 0.1
    assert total.relative_error("encoder") == 0.3
    assert (first.words, first.squares) == (9, {"encoder": (1.0, 100.0)})


def test_silence_in_which_nothing_is_recognized():
    """Its row has every column, and no number is made of nothing."""
    rows = [
        RecordingCheck("silence", "", "", Difference()),
        RecordingCheck("speech", "a", "a", Difference(1, 0, {"encoder": (0.0, 1.0)}, 0.0, 3)),
    ]
    report = CheckReport(Loaded(1, 1.0), Loaded(1, 1.0), rows, "CPU")
    assert rows[0].difference.kl == 0
    assert "| silence | 0 | 0.0 |  | 0.0e+00 |" in check_markdown(report)
    assert max(map(len, check_table(report).splitlines())) <= 80


def test_speech_to_text(tmp_path):
    """Has no projector, and searches with beams."""
    report = check_one(TINY_S2T, damaged(TINY_S2T, tmp_path / "off"), [GATE])
    (recording,) = report.recordings
    assert recording.original == "unlock the back gate"
    total = report.total
    assert total.relative_error("projector") is None
    assert 0.01 < total.relative_error("encoder") < 1
    assert 0.01 < total.relative_error("logits") < 1
    assert 0 < total.kl < 1
    assert "projector" not in check_markdown(report)
    assert max(map(len, check_table(report).splitlines())) <= 80


def test_without_a_decoder(tmp_path):
    """TurboCTC, of whose frames the logits are compared; 8 bits change none of its words here."""
    source = DATA / "tiny-turboctc"
    (result,) = convert.convert(source, tmp_path / "model", quantize=True)
    report = check_one(source, result.folder, [GATE])
    total = report.total
    assert report.recordings[0].original == transcribe(GATE, load(source)).text != ""
    assert (total.errors, list(total.squares)) == (0, ["encoder", "logits"])
    model, processor = load(source)
    logits = np.array(model(**processor(load_audio(GATE))).logits[0], np.float64)
    assert total.positions == len(logits)
    model, _ = load(result.folder)
    after = np.array(model(**processor(load_audio(GATE))).logits[0], np.float64)
    found = total.relative_error("logits")
    # a chunk begins and ends where it was cut
    expected = np.linalg.norm(after - logits) / np.linalg.norm(logits)
    assert found == pytest.approx(expected, rel=0.2)
    assert 0 < total.kl < 0.01


def test_same_weights_differ_in_nothing(monkeypatch):
    """Twice, and memory holds one model at a time."""
    loaded = []

    def load_alone(folder, adapter):
        gc.collect()
        assert all(model() is None for model in loaded)
        assert adapter is None
        model, processor = load(folder)
        loaded.append(weakref.ref(model))
        return model, processor

    monkeypatch.setattr(convert.check, "load", load_alone)
    reports = check(TINY, [TINY, TINY], [GATE])
    assert len(loaded) == 3
    size = sum(file.stat().st_size for file in TINY.glob("*.safetensors"))
    for report in reports:
        total = report.total
        assert (total.words, total.errors, total.kl) == (4, 0, 0)
        assert [total.relative_error(s) for s in ("encoder", "projector", "logits")] == [0] * 3
        assert report.original.size == report.converted.size == size
        assert 0 < report.original.load_seconds < 60


def test_the_original_is_loaded_with_the_adapter_that_was_fused(monkeypatch):
    def load_first(folder, adapter):
        raise CheckpointError(f"{folder.name} with {adapter}")

    monkeypatch.setattr(convert.check, "load", load_first)
    with pytest.raises(CheckpointError, match=f"^{TINY.name} with owner/adapter$"):
        check(TINY, [TINY], [GATE], adapter="owner/adapter")


def test_divergences_of_close_and_of_far_distributions():
    """Against float64, where float32's plain sum would lose all digits, and e^d its range."""
    rng = np.random.default_rng(0)
    before = rng.normal(size=(3, 1000)).astype(np.float32) * 3
    after = before + rng.normal(size=(3, 1000)).astype(np.float32) * 1e-3
    first, last, flat = np.array([[[200, 0, 0]], [[0, 0, 200]], [[0, 0, 0]]], np.float32)
    for p, q in ((before, after), (before, before), (first, last), (flat, first)):
        log_p, log_q = (
            x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in map(np.float64, (p, q))
        )
        expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        found = np.array(divergences(mx.array(p), mx.array(q)))
        assert found.min() >= 0
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-12)


# What is refused


def test_text_model(tiny_text):
    with pytest.raises(UnsupportedOptionError, match="a granite model is not a speech model"):
        check(tiny_text, [tiny_text])


def test_recordings_are_looked_at_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(convert.check, "load", None)
    (tmp_path / "noise.wav").write_bytes(b"noise")
    for name, said in (("none.wav", "none.wav: no such file"), ("noise.wav", "noise.wav")):
        with pytest.raises(AudioError, match=said):
            check(TINY, [TINY], [GATE, tmp_path / name])


# The bundled recordings


def test_a_full_disk(monkeypatch):
    """Of temporary files, one of which is named."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("convert.check.save_tensors", full)
    with pytest.raises(OSError, match="No space left") as raised:
        check(TINY, [TINY], [GATE])
    assert Path(raised.value.filename).name == "0-0.safetensors"


def test_bundled_recordings_are_installed():
    files = bundled_recordings()
    assert len(files) >= 4
    assert sum(file.stat().st_size for file in files) < 300_000
    # Python 3.10 cannot read TOML
    data = (ROOT / "pyproject.toml").read_text()
    (pattern,) = re.findall(r'^"mlx_speech.convert" = \["(.*)"\]$', data, re.MULTILINE)
    assert sorted((ROOT / "convert").glob(pattern)) == files
    for file in files:
        assert file.read_bytes() == (DATA / "audio" / file.name).read_bytes()


def test_bundled_recordings_are_the_default(monkeypatch):
    monkeypatch.setattr(convert.check, "bundled_recordings", lambda: [GATE])
    assert [r.name for r in check_one(TINY_S2T, TINY_S2T).recordings] == ["flite_08.flac"]


# How it is shown


def test_table(report):
    lines = check_table(report).splitlines()
    heads = "recording words WER % encoder projector logits KL"
    assert lines[0].split() == heads.split()
    assert lines[1].split()[:2] == ["flite_08.flac", "4"]
    assert lines[2].split()[1:] == lines[1].split()[1:]
    assert lines[4].split() == ["weights", "load"]
    assert lines[5].split()[:3] == ["original", "8.56", "MB"]
    assert lines[-2:] == [
        "  original:  unlock the back gate",
        f"  converted: {report.recordings[0].converted}",
    ]


def test_table_fits_a_terminal(report):
    (recording,) = report.recordings
    recording = type(recording)("a" * 200 + ".wav", "word " * 60, "", recording.difference)
    long = type(report)(report.original, report.converted, [recording], "CPU")
    lines = check_table(long).splitlines()
    assert max(map(len, lines)) <= 80
    assert len({len(line) for line in lines[:3]}) == 1
    assert "  converted: (nothing)" in lines


def test_names_are_shortened():
    assert fitting_name("short.wav", 20) == "short.wav"
    assert fitting_name("a very long recording.wav", 20) == "a very lon…rding.wav"
    assert fitting_name("two\nlines.wav", 20) == r"'two\nlines.wav'"


def test_markdown(report):
    rows = [line for line in check_markdown(report).splitlines() if line]
    assert rows[0] == "| recording | words | WER % | encoder | projector | logits | KL |"
    assert {row.count("|") for row in rows[:4]} == {8}
    assert rows[3].startswith("| **total** | 4 |")
