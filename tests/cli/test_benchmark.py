"""`python -m mlx_speech.benchmark` as a user runs it; that every number is there, not how fast."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import pytest
from adapters import LORA, adapter
from commands import Caller, Terminal, one_line, run
from conftest import DATA, ROOT, TINY
from nar_models import on_bundled_encoder

import mlx_speech
from convert import convert as convert_checkpoint
from mlx_speech.cli.benchmark import build_parser, main
from mlx_speech.loading import load_model
from mlx_speech.profiling import limits, profile, sample, speed

GATE = DATA / "audio" / "flite_08.flac"
TINY_S2T = ROOT / "examples" / "tiny-s2t"


@pytest.fixture
def cli(monkeypatch, capsys) -> Caller:
    """With short measurements: small batches, a few seconds of speech, two tokens, small arrays."""
    monkeypatch.setattr(limits, "_COPIED_BYTES", 2**16)
    monkeypatch.setattr(limits, "_LONG_ENOUGH_S", 0)
    monkeypatch.setattr(profile, "BATCHES", (1, 3))
    monkeypatch.setattr(sample, "SAMPLE_SECONDS", 3)
    monkeypatch.setattr(speed, "NEW_TOKENS", 2)
    return Caller(main, monkeypatch, capsys)


def leaves(data: object) -> list[object]:
    """All that is in a JSON object."""
    parts = data.values() if isinstance(data, dict) else data
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        return [data]
    return [leaf for part in parts for leaf in leaves(part)]


class TestTable:
    def test_every_line(self, cli):
        status, out, err = cli("--runs", 1, "--bits", "16,4", GATE)
        assert (status, err) == (0, "")
        assert max(map(len, out.splitlines()[4:])) == 80
        head, measured, attention = out.rstrip("\n").split("\n\n")
        assert re.search(rf"^{TINY}\n{GATE}, 1\.5 s; medians of 1$", head, re.MULTILINE)
        assert re.search(r"^memory: [\d.,]+ GB, [\d.]+ [MG]B/s copied$", head, re.MULTILINE)
        names, *rows = measured.splitlines()
        assert re.split(r"\s{2,}", names.strip())[1:] == ["4 bits"]
        cells = [re.split(r"\s{2,}", row.strip()) for row in rows]
        speeds = ["alone", "in a batch of 3"]
        assert [label for label, *_ in cells] == [
            "weights",
            "whole pipeline, times real time",
            "passes of the decoder per token",
            "peak memory",
            "encoder, ms per second of audio",
            "arithmetic per second of audio",
            "share of the machine's arithmetic",
            "prefill, tokens per second",
            *speeds,
            "decoding without drafts, tokens per second",
            *speeds,
            "weights read in a step",
            "share of the machine's bandwidth, alone",
        ]
        titles = [row for row in cells if len(row) == 1]
        assert len(titles) == 2
        values = [value for _, *row in cells for value in row]
        assert len(values) == 2 * (len(cells) - len(titles))
        assert all(re.fullmatch(r"[\d.,]+( (%|[kMG]?B|[MG]FLOP))?", value) for value in values)
        assert attention.splitlines()[0].split()[:2] == ["attention", "queries"]
        assert re.search(r"^encoder +50 +50 +4 / 4 +32 +no$", attention, re.MULTILINE)
        assert re.search(r"^decoder, causal +(\d+) +\1 +4 / 2 +32 +no$", attention, re.MULTILINE)

    def test_an_encoder_decoder_has_no_prefill(self, cli):
        status, out, err = cli("--model", TINY_S2T, "--runs", 1, GATE)
        assert (status, err) == (0, "")
        assert re.search(r"^  passes of the decoder per token +-$", out, re.MULTILINE)
        prefill = out.split("prefill, tokens per second\n")[1].split("decoding")[0]
        assert [row.split()[-1] for row in prefill.splitlines()] == ["-", "-"]

    def test_a_model_of_one_pass_has_no_decoding(self, cli, tmp_path):
        folder = on_bundled_encoder(tmp_path / "nar", {})
        status, out, err = cli("--runs", 1, "--model", folder, "--bits", "8", GATE)
        assert (status, err) == (0, "")
        assert "8 bits" in out
        assert "tokens per second" not in out
        assert "weights read" not in out
        assert re.search(r"^decoder +\d+ +\d+", out, re.MULTILINE)
        _, out, _ = cli("--runs", 1, "--model", folder, "--json", GATE)
        (profile,) = json.loads(out)["profiles"]
        assert profile["decoder"] is None
        assert profile["pipeline"]["times_real_time"] > 0

    def test_a_process_of_its_own(self):
        """With the recordings that are installed; MLX_SPEECH_MODEL names the model."""
        status, out, err = run("benchmark", "--runs", 1)
        assert (status, err) == (0, "")
        assert f"\n{TINY}\n4 recordings, 12.1 s; medians of 1\n" in out


class TestJSON:
    def test_one_object(self, cli):
        status, out, err = cli("--json", "--runs", 1, "--bits", "4", GATE)
        assert (status, err) == (0, "")
        found = json.loads(out)
        assert found["mlx_speech"] == mlx_speech.__version__
        assert (found["model"], found["recordings"], found["runs"]) == (str(TINY), [str(GATE)], 1)
        (profiled,) = found["profiles"]
        assert profiled["bits"] == 4
        assert [b["batch"] for b in profiled["decoder"]["batches"]] == [1, 3]
        assert {use["part"] for use in found["attention"]} == {"encoder", "projector", "decoder"}
        values = [v for v in leaves(found) if type(v) in (int, float)]
        assert all(value > 0 for value in values)
        of_a_profile = 2 + 4 + 4 * 2 + 2 + 9
        assert len(values) == 3 + of_a_profile + 6 * len(found["attention"])

    def test_an_adapter(self, cli, tmp_path):
        """Is named, and measured with the model."""
        tuned = adapter(tmp_path / "tuned", load_model(TINY), LORA, rank=64)
        plain, over = (
            json.loads(cli("--json", "--runs", 1, *words, GATE)[1])
            for words in ((), ("--adapter", tuned))
        )
        assert (plain["adapter"], over["adapter"]) == (None, str(tuned))
        sizes = [found["profiles"][0]["weight_bytes"] for found in (plain, over)]
        assert sizes[0] < sizes[1]
        table = cli("--runs", 1, "--adapter", tuned, GATE)[1]
        assert f"\n{TINY}, with {tuned} over it\n" in table

    def test_as_loaded(self, cli):
        _, out, _ = cli("--json", "--runs", 1, "--dtype", "float16", GATE)
        (profiled,) = json.loads(out)["profiles"]
        assert (profiled["bits"], profiled["dtype"]) == (16, "float16")

    def test_quantized_already(self, cli, tmp_path):
        convert_checkpoint(TINY, tmp_path / "small", quantize=True)
        _, out, _ = cli("--json", "--runs", 1, "--model", tmp_path / "small", GATE)
        assert json.loads(out)["profiles"][0]["bits"] == 4
        failed = cli("--bits", 8, "--model", tmp_path / "small", GATE)
        one_line(failed, "--bits quantizes in memory", "is quantized already; leave it out")


class TestProgress:
    def test_verbose(self, cli):
        status, _, err = cli("--verbose", "--runs", 1, GATE)
        assert status == 0
        assert "\nencoding\n" in err
        assert "\ndecoding in batches of 3\n" in err

    def test_interrupted(self):
        with Terminal("benchmark") as terminal:
            terminal.expect("warming up")
            terminal.type("\x03")
            terminal.expect("interrupted\r\n")
            assert terminal.wait() == 130


class TestWrongInput:
    def test_recordings(self, cli, tmp_path):
        one_line(cli("nowhere.wav"), "nowhere.wav does not exist: check the path")
        one_line(cli(GATE, tmp_path), "holds no recordings")
        text = tmp_path / "text.wav"
        text.write_text("no sound")
        one_line(cli(text), "text.wav")
        one_line(cli(DATA / "audio" / "silence.flac"), "there is no speech in the first 3 seconds")

    def test_models(self, cli, tiny_text):
        one_line(cli("--model", tiny_text, GATE), "a granite model is not a speech model")
        one_line(cli("--model", "./nowhere", GATE), "nowhere")

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--bits", "16,3"), "argument --bits: invalid choice: '3' (choose from 16, 8, 4)"),
            (("--bits", ""), "argument --bits: invalid choice: ''"),
            (("--runs", "0"), "--runs is 0, but must be an integer, at least 1"),
            (("-",), "recordings are read several times: give files, not - and no addresses"),
            (("https://example.org/talk.mp3",), "recordings are read several times"),
        ],
        ids=str,
    )
    def test_usage(self, cli, args, message):
        status, out, err = cli(*args)
        assert (status, out) == (2, "")
        assert f"error: {message}" in err.splitlines()[-1]


def test_the_same_bits_twice_are_measured_once():
    assert build_parser().parse_args(["--bits", "8, 4,8"]).bits == [8, 4]


def test_help_fits_and_tells_defaults(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = build_parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert f"for the median (default: {profile.RUNS})" in " ".join(text.split())
