"""What methods that learn refuse, and what they say on the command line."""

from __future__ import annotations

import pytest
from commands import Caller
from conftest import DATA, TINY, TINY_S2T, find_recording

from convert import convert, dwq
from convert.cli import main
from mlx_speech.errors import InputError

GATE = find_recording("synthetic/flite_08.flac")
SILENCE = find_recording("synthetic/silence.flac")
LLAMA = DATA / "decoders" / "llama"


@pytest.fixture
def call(monkeypatch, capsys):
    return Caller(main, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "dwq"), "--method dwq needs --quantize"),
        (("-q", "--method", "hqq"), "invalid choice: 'hqq'"),
        (("-q", "--calibration", GATE), "--calibration is for a --method that learns"),
        (("-q", "--method", "awq", "--target-bpw", "5"), "--target-bpw is for --method dynamic"),
        (("-q", "--method", "awq", "--q-mode", "mxfp4"), "--method awq needs --q-mode affine"),
        (("-q", "--method", "gptq", "--q-bits", "4,8"), "takes one number of --q-bits at a time"),
        (("-q", "--method", "dwq", "--q-bits", "8"), "--method dwq is for --q-bits below 8"),
        (("-q", "--method", "dynamic", "--q-bits", "8"), "dynamic is for --q-bits below 8"),
        (("-q", "--method", "dynamic", "--dry-run"), "and --dry-run runs nothing"),
        (
            ("-q", "--method", "dynamic", "--quant-predicate", "mixed_4_8"),
            "--method dynamic chooses the bits; leave out --quant-predicate",
        ),
        (("-q", "--method", "dynamic", "--target-bpw", "nan"), "--target-bpw is nan, but must be"),
    ],
)
def test_usage(call, tmp_path, options, message):
    status, out, err = call("--model", TINY, "--mlx-path", tmp_path / "out", *options)
    assert (status, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            LLAMA,
            ("--method", "dwq"),
            "--method dwq is for the decoders of granite_speech and granite_speech_plus models, "
            "not for llama; for text there is `mlx_lm.dwq`",
        ),
        (LLAMA, ("--method", "dynamic"), "`mlx_lm.dynamic_quant`"),
        (TINY_S2T, ("--method", "gptq"), "not for speech_to_text\n"),
        (DATA / "tiny-nar", ("--method", "gptq"), "granite_speech_plus models, not for "),
        (DATA / "tiny-turboctc", ("--method", "awq"), "not for granite_speech5_ctc\n"),
        (TINY, ("--method", "gptq", "--calibration", "no.wav"), "no.wav: no such file to calibra"),
        (TINY, ("--method", "gptq", "--calibration", DATA), "data is a folder: name the"),
        (TINY, ("--method", "gptq", "--calibration", __file__), "test_methods.py"),
        (TINY, ("--method", "gptq", "--calibration", SILENCE), "no speech found to calibrate with"),
        (TINY, ("--method", "gptq", "--q-bits", "3"), "--method gptq has 2, 4 and 8 bits, not 3"),
        (
            TINY,
            ("--method", "dwq", "--quant-predicate", "speech_8bit"),
            "--method dwq is for --q-bits below 8, and the decoder has none",
        ),
        (
            TINY,
            ("--method", "awq", "--quant-predicate", "mixed_4_8"),
            "for all linear layers of a decoder, but here are 4 and 8; leave out --quant-predicate",
        ),
        (
            TINY,
            ("--method", "dynamic", "--target-bpw", "3", "--calibration", GATE),
            "--target-bpw is 3, but 4 bits everywhere come to 4.96",
        ),
    ],
)
def test_what_cannot_be_done(call, tmp_path, model, options, message):
    """One line, and nothing is written."""
    status, out, err = call("--model", model, "--mlx-path", tmp_path / "out", "-q", *options)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_library(tmp_path):
    with pytest.raises(InputError, match="method is 'best', but must be one of rtn, awq, gptq"):
        convert(TINY, tmp_path / "out", quantize=True, method="best")


def test_command_line(call, tmp_path, monkeypatch):
    """One folder on standard output; nothing of mlx-lm's bars; other bits than GPTQ has."""
    monkeypatch.setattr(dwq, "_STEPS", 1)
    options = ("-q", "--q-bits", "3", "--method", "dwq", "--calibration", GATE, "--fuse-adapter")
    status, out, err = call("--model", TINY, "--mlx-path", tmp_path / "out", *options)
    assert (status, out) == (0, f"{tmp_path / 'out'}\n")
    assert "\n  dwq, learned from 1 recording of 2 s, in " in err
    assert not any(word in err for word in ("it/s", "Trainable", "%|"))
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_plan(call, tmp_path):
    """Of what is learned only the values are different."""
    arguments = ("--model", TINY, "--mlx-path", tmp_path / "out", "-q", "--dry-run")
    assert call(*arguments, "--method", "awq")[1] == call(*arguments)[1]


def test_a_check_of_what_was_learned_from_is_told(call, tmp_path):
    options = ("-q", "--method", "gptq", "--calibration", GATE, "--check", GATE)
    err = call("--model", TINY, "--mlx-path", tmp_path / "out", *options)[2]
    assert "warning: --check is over recordings that --method learns from" in err
