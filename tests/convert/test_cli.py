"""The command line of the conversion: options, what goes where, exit statuses."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys

import mlx.core as mx
import pytest
from commands import Caller
from conftest import DATA, ROOT, TINY
from pytorch_files import save_pytorch_bin

from convert.cli import main
from mlx_speech.checkpoint.quantization import RECIPES
from mlx_speech.loading import load_model

LLAMA = DATA / "decoders" / "llama"


@pytest.fixture
def call(monkeypatch, capsys):
    return Caller(main, monkeypatch, capsys)


def start(*args, **options) -> subprocess.Popen:
    """`python -m convert` in a clone."""
    return subprocess.Popen(
        [sys.executable, "-m", "convert", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


class TestUse:
    def test_in_a_clone(self, tmp_path):
        process = start("--model", LLAMA, "--mlx-path", tmp_path / "out", "-q")
        out, err = process.communicate()
        assert (process.returncode, out) == (0, f"{tmp_path / 'out'}\n")
        lines = err.splitlines()
        assert lines[0] == (
            f"{tmp_path / 'out'}: all_4bit (bits: decoder 4), in float32 what is not quantized; "
            "77.70 kB -> 25.07 kB"
        )
        assert lines[1].startswith("  in groups of 32, 32 inputs are no multiple of 64: ")

    def test_help_names_every_recipe(self, call):
        status, out, _ = call("--help")
        assert status == 0
        assert all(name in out for name in RECIPES)

    def test_plain_four_bits_of_a_speech_model_say_what_they_are(self, call, tmp_path):
        arguments = ("--hf-path", TINY, "--mlx-path", tmp_path / "out", "-q", "--dry-run")
        status, _, err = call(*arguments)
        assert status == 0
        assert "speech_4bit (bits: encoder 8, projector 8, decoder 4)" in err
        err = call(*arguments, "--quant-predicate", "mixed_4_8")[2]
        assert "mixed_4_8 (bits: encoder 8, projector 8, decoder 4 and 8)" in err
        assert not list(tmp_path.iterdir())

    def test_plan(self, call, tmp_path):
        """Every module, on 80 columns."""
        arguments = ("--model", TINY, "--mlx-path", tmp_path / "out", "-q", "--dry-run")
        lines = call(*arguments)[1].splitlines()
        assert max(map(len, lines)) <= 80
        assert lines[0].split() == ["module", "shape", "stored", "before", "after"]
        (row,) = (line for line in lines if line.startswith("encoder.layers.5.conv.up_conv"))
        assert row.split()[1:] == ["512x128", "8/64", "132.1", "kB", "70.66", "kB"]
        for path, module in load_model(TINY).named_modules():
            if "weight" in module:
                name = path.removesuffix(".base")
                assert any(line.split()[0] == name for line in lines if line)
        total = next(line.split() for line in lines if line.startswith("total"))
        assert total == ["total", "8.45", "MB", "4.20", "MB"]

    def test_several_bits(self, call, tmp_path):
        options = ("-q", "--q-bits", "3,8")
        status, out, _ = call("--model", LLAMA, "--mlx-path", tmp_path / "m", *options)
        assert (status, out) == (0, f"{tmp_path / 'm-3bit'}\n{tmp_path / 'm-8bit'}\n")
        assert load_model(tmp_path / "m-3bit").lm_head.bits == 3
        assert load_model(tmp_path / "m-8bit").lm_head.bits == 8

    def test_verbose(self, call, tmp_path):
        err = call("--model", LLAMA, "--mlx-path", tmp_path / "m", "--verbose")[2]
        assert re.match(r"llama: converted in \d+\.\d s\n", err)

    def test_options(self, call, tmp_path):
        options = ("-q", "--q-group-size", 32, "--q-mode", "mxfp4", "--dtype", "bfloat16")
        assert call("--model", LLAMA, "--mlx-path", tmp_path / "m", "--quiet", *options) == (
            0,
            f"{tmp_path / 'm'}\n",
            "",
        )
        model = load_model(tmp_path / "m", dtype=mx.bfloat16)
        assert (model.lm_head.mode, model.lm_head.group_size) == ("mxfp4", 32)
        options = ("-q", "--quant-predicate", "all_4bit")
        assert call("--model", TINY, "--mlx-path", tmp_path / "s", *options)[0] == 0
        assert load_model(tmp_path / "s").encoder.layers[0].conv.up_conv.bits == 4
        assert call("--model", tmp_path / "m", "--mlx-path", tmp_path / "p", "-d")[0] == 0
        assert "quantization" not in json.loads((tmp_path / "p" / "config.json").read_text())
        assert call("--model", TINY, "--mlx-path", tmp_path / "f", "--fuse-adapter")[0] == 0
        assert not (tmp_path / "f" / "adapter_config.json").exists()
        assert call("--model", LLAMA, "--mlx-path", tmp_path / "f", "--overwrite")[0] == 0
        assert load_model(tmp_path / "f").config.model_type == "llama"

    def test_from_the_hub(self, call, tmp_path, hub):
        """The licence, which loading does not need, included."""
        folder = tmp_path / "repo"
        folder.mkdir()
        for file in TINY.iterdir():
            (folder / file.name).symlink_to(file)
        for name in ("LICENSE", "README.md", "sample.wav"):
            (folder / name).write_text(name)
        hub.add("ibm-granite/granite-speech-4.1-2b", folder)
        options = ("--mlx-path", tmp_path / "out", "-q", "--revision", "main", "--quiet")
        assert call("--model", "ibm-granite/granite-speech-4.1-2b", *options)[0] == 0
        assert "sample.wav" not in hub.fetched()
        held = {path.name for path in (tmp_path / "out").iterdir()}
        assert held >= {"out_llm.safetensors", "LICENSE", "adapter_model.safetensors"}
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["base_model"] == "ibm-granite/granite-speech-4.1-2b"

    def test_a_plan_fetches_no_weights(self, call, tmp_path, hub):
        """Only their headers, and it is what it would be with them."""
        hub.add("ibm-granite/granite-speech-4.1-2b", TINY)
        options = ("--mlx-path", tmp_path / "out", "-q", "--q-bits", "4,8", "--dry-run")
        status, out, _ = call("--model", "ibm-granite/granite-speech-4.1-2b", *options)
        assert (status, out) == (0, call("--model", TINY, *options)[1])
        weights = [r for r in hub.requests if r.path.endswith("/model.safetensors")]
        # the length of the header, and the header
        assert {r.headers["range"].split("-")[0] for r in weights} <= {"bytes=0", "bytes=8"}
        assert sum(file.stat().st_size for file in tmp_path.rglob("*")) < 1_000_000

    def test_a_plan_of_pytorch_files(self, call, tmp_path, hub):
        """They have no headers, and come whole."""
        (tmp_path / "bin").mkdir()
        shutil.copy(LLAMA / "config.json", tmp_path / "bin")
        weights = mx.load(str(LLAMA / "model.safetensors"))
        save_pytorch_bin(tmp_path / "bin" / "pytorch_model.bin", weights)
        hub.add("some/llama", tmp_path / "bin")
        options = ("--mlx-path", tmp_path / "out", "-q", "--dry-run")
        assert call("--model", "some/llama", *options)[:2] == call("--model", LLAMA, *options)[:2]

    def test_a_plan_without_the_hub(self, call, tmp_path, hub):
        hub.add("some/llama", LLAMA)
        hub.fail("GET */model.safetensors", status=500)
        options = ("--mlx-path", tmp_path / "out", "--dry-run", "--quiet")
        status, out, err = call("--model", "some/llama", *options)
        assert (status, out) == (1, "")
        assert err.startswith("error: some/llama: the Hub has a fault of its own (500)")
        assert err.count("\n") == 1


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "the following arguments are required: --hf-path/--model"),
            (("--model", TINY, "--q-bits", "4"), "--q-bits goes with -q"),
            (("--model", TINY, "--adapter", "a"), "--adapter goes with --fuse-adapter"),
            (("--model", TINY, "--q-mode", "mxfp4"), "--q-mode goes with -q"),
            (("--model", TINY, "--quant-predicate", "all_4bit"), "--quant-predicate goes with -q"),
            (("--model", TINY, "-q", "--q-bits", "7"), "'7' is not one or several of 2, 3, 4, 5"),
            (("--model", TINY, "-q", "--q-bits", "4,4"), "'4,4' is not one or several"),
            (("--model", TINY, "-q", "--q-bits", "four"), "'four' is not one or several"),
            (("--model", TINY, "-q", "--quant-predicate", "x"), "invalid choice: 'x'"),
            (
                ("--model", TINY, "-q", "--q-bits", "4", "--quant-predicate", "all_4bit"),
                "leave out --q-bits",
            ),
        ],
    )
    def test_usage(self, call, options, message):
        status, out, err = call(*options)
        assert (status, out) == (2, "")
        assert message in err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--model", "nowhere/at/all"), "error: no such folder: nowhere/at/all"),
            (
                ("--model", TINY, "-q", "--q-mode", "mxfp4", "--q-bits", "8"),
                "error: --q-bits is 8, but mxfp4 has 4",
            ),
            (
                ("--model", TINY, "-q", "--q-mode", "nvfp4", "--q-group-size", "32"),
                "error: --q-group-size is 32, but nvfp4 has 16",
            ),
            (("--model", TINY, "-d"), "not quantized; leave out --dequantize"),
            (("--model", LLAMA, "--fuse-adapter"), "leave out --fuse-adapter"),
        ],
    )
    def test_one_line(self, call, tmp_path, options, message):
        status, out, err = call(*options, "--mlx-path", tmp_path / "out")
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert message in err
        assert not list(tmp_path.iterdir())

    def test_what_is_there_already(self, call, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
        arguments = ("--model", LLAMA, "--mlx-path", tmp_path / "out")
        status, out, err = call(*arguments)
        assert (status, out) == (1, "")
        assert err == f"error: {tmp_path / 'out'} exists already; --overwrite replaces it\n"
        assert "holds what no conversion wrote" in call(*arguments, "--overwrite")[2]

    def test_a_file_that_may_not_grow(self, tmp_path):
        """A limit that the system itself enforces, as it does a full disk."""

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))

        process = start("--model", TINY, "--mlx-path", tmp_path / "out", "-q", preexec_fn=limit)
        out, err = process.communicate()
        assert (process.returncode, out) == (1, "")
        reason = "cannot be written: File too large; nothing was kept of it"
        assert err == f"error: {tmp_path / 'out'}: {reason}\n"
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_may_not_be_written(self, call, tmp_path, monkeypatch):
        def refuse(*args, **options):
            raise PermissionError(13, "Permission denied", str(tmp_path / "out"))

        monkeypatch.setattr("tempfile.mkdtemp", refuse)
        status, out, err = call("--model", LLAMA, "--mlx-path", tmp_path / "out")
        assert (status, out) == (1, "")
        assert err.startswith(f"error: {tmp_path / 'out'}: cannot be written: Permission denied")
        assert err.count("\n") == 1

    def test_ctrl_c(self, tmp_path):
        """While it writes."""
        code = (
            "import sys, time\n"
            "from convert.cli import main\n"
            "from convert.source import Source\n"
            "def wait(*args, **options): print('now', flush=True); time.sleep(60)\n"
            "Source.copy_carried = wait\n"
            f"sys.exit(main(['--model', {str(LLAMA)!r}, '--mlx-path', {str(tmp_path / 'o')!r}]))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "now\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == "interrupted\n"
        assert process.returncode == 130
        assert not list(tmp_path.iterdir())
