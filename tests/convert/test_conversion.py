"""Conversion: what is written loads, says what it is, and is whole or not there at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import (
    DATA,
    DECODERS,
    ROOT,
    TINY,
    TINY_S2T,
    edit_json,
    find_recording,
    speech_inputs,
)
from conversions import all_tensors, logits, same, tensors
from pytorch_files import save_pytorch_bin

from convert import convert
from mlx_speech import InputError, MlxSpeechError, __version__, load, transcribe
from mlx_speech.checkpoint.quantization import resolve_quantization
from mlx_speech.loading import load_model
from mlx_speech.transcription.word_errors import word_errors

FAMILIES = [TINY, TINY_S2T, *sorted(DECODERS.iterdir())]
RECORDING = "synthetic/flite_08.flac"
STORED = {TINY: mx.bfloat16, TINY_S2T: mx.float16}


class TestFamilies:
    @pytest.mark.parametrize("source", FAMILIES, ids=lambda path: path.name)
    def test_logits_are_those_of_quantizing_in_memory(self, tmp_path, source):
        dtype = STORED.get(source, mx.float32)
        (result,) = convert(source, tmp_path / "out", quantize=True, q_group_size=32)
        found = load_model(result.folder, dtype=dtype)
        expected = load_model(source, dtype=dtype)
        nn.quantize(expected, class_predicate=resolve_quantization(expected, group_size=32))
        mine, theirs = (
            {path for path, m in model.named_modules() if "scales" in m}
            for model in (found, expected)
        )
        assert mine == theirs
        assert len(mine) > 5
        assert mx.array_equal(logits(found), logits(expected)).item()

    @pytest.mark.parametrize("source", FAMILIES, ids=lambda path: path.name)
    def test_unquantized(self, tmp_path, source):
        dtype = STORED.get(source, mx.float32)
        (result,) = convert(source, tmp_path / "out")
        assert (result.bits, result.recipe) == (None, None)
        assert "quantization" not in json.loads((result.folder / "config.json").read_text())
        found, expected = (load_model(folder, dtype=dtype) for folder in (result.folder, source))
        assert mx.array_equal(logits(found), logits(expected)).item()

    def test_pytorch_bin(self, tmp_path):
        """In two shards; what is rewritten on the way is gone at the end."""
        source = tmp_path / "bin"
        shutil.copytree(DECODERS / "llama", source)
        weights = mx.load(str(source / "model.safetensors"))
        (source / "model.safetensors").unlink()
        names, weight_map = sorted(weights), {}
        for number in range(2):
            file = f"pytorch_model-{number + 1:05d}-of-00002.bin"
            save_pytorch_bin(source / file, {name: weights[name] for name in names[number::2]})
            weight_map |= dict.fromkeys(names[number::2], file)
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (found,) = convert(source, tmp_path / "a", quantize=True)
        (expected,) = convert(DECODERS / "llama", tmp_path / "b", quantize=True)
        assert same(tensors(found.folder), tensors(expected.folder))
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "bin"}
        assert not list(found.folder.glob("pytorch_model*"))

    @pytest.mark.parametrize(
        ("changes", "options"),
        [({"hidden_size": 64}, {}), ({}, {"dequantize": True}), ({}, {"fuse_adapter": True})],
        ids=["shape", "dequantize", "adapter"],
    )
    def test_mistakes_about_pytorch_files_name_them(self, tmp_path, changes, options):
        """Not the folder for what is rewritten, which is gone."""
        source = tmp_path / "bin"
        shutil.copytree(DECODERS / "llama", source)
        weights = mx.load(str(source / "model.safetensors"))
        (source / "model.safetensors").unlink()
        save_pytorch_bin(source / "pytorch_model.bin", weights)
        edit_json(source / "config.json", **changes)
        with pytest.raises(MlxSpeechError) as raised:
            convert(source, tmp_path / "a", **options)
        assert str(raised.value).startswith(f"{source}: ")
        assert ".mlx-speech" not in str(raised.value)


class TestOutput:
    def test_loads_from_another_folder(self, quantized, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        folder = shutil.copytree(quantized[0].folder, tmp_path / "elsewhere")
        assert transcribe(find_recording(RECORDING), load(folder)).text == "unlock the back gate"

    def test_files(self, quantized):
        for result in quantized:
            held = {path.name for path in result.folder.iterdir()}
            source = {path.name for path in TINY.iterdir()}
            assert held == source | {"model.safetensors.index.json", "README.md"}
            for name in source - {"model.safetensors", "out_llm.safetensors", "config.json"}:
                assert (result.folder / name).read_bytes() == (TINY / name).read_bytes()

    def test_other_files_of_a_source(self, tiny_copy, tmp_path):
        for name in ("LICENSE", "vocab.json", "merges.txt", "chat_template.json"):
            (tiny_copy / name).write_text("{}")
        for name in ("model.py", "pytorch_model.bin", "sample.wav"):
            (tiny_copy / name).write_text("not for us")
        (result,) = convert(tiny_copy, tmp_path / "out", quantize=True)
        held = {path.name for path in result.folder.iterdir()}
        assert held >= {"LICENSE", "vocab.json", "merges.txt", "chat_template.json"}
        assert not held & {"model.py", "pytorch_model.bin", "sample.wav"}
        assert load(result.folder)

    def test_chat_templates_of_several_names(self, tiny_copy, tmp_path):
        (tiny_copy / "additional_chat_templates").mkdir()
        (tiny_copy / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
        (tiny_copy / "additional_chat_templates" / "notes.txt").write_text("not for us")
        for name in ("additional_chat_templates/._tool_use.jinja", "._config.json"):
            (tiny_copy / name).write_bytes(b"\0\5\xff")  # which macOS leaves there
        (result,) = convert(tiny_copy, tmp_path / "out")
        templates = load(result.folder)[1].tokenizer.chat_template
        assert templates["tool_use"] == "{{ tools }}"
        held = (result.folder / "additional_chat_templates").iterdir()
        assert [file.name for file in held] == ["tool_use.jinja"]
        assert not list(result.folder.glob("._*"))

    def test_config(self, quantized):
        for result, bits in zip(quantized, (4, 8), strict=True):
            config = json.loads((result.folder / "config.json").read_text())
            stated = config.pop("quantization")
            assert config.pop("quantization_config") == stated
            assert config.pop("base_model") == "tiny-granite-speech"
            held = sorted(path.name for path in result.folder.iterdir())
            assert config.pop("converted_by") == {"mlx_speech": __version__, "files": held}
            assert config == json.loads((TINY / "config.json").read_text())
            assert stated.pop("encoder.input_linear") == {
                "group_size": 32,
                "bits": 8,
                "mode": "affine",
            }
            assert [stated.pop(name) for name in ("group_size", "bits", "mode")] == [
                64,
                bits,
                "affine",
            ]
            # of the 8-bit one, everything else is as at the top
            assert bool(stated) == (bits == 4)
            for path, entry in stated.items():
                assert path.startswith(("encoder.", "projector."))
                assert entry == {"group_size": 64, "bits": 8, "mode": "affine"}

    def test_the_entries_are_what_mlx_reads(self, quantized):
        """As mlx-lm does it: entries for some modules, the top for others that have scales."""
        for result in quantized:
            stated = json.loads((result.folder / "config.json").read_text())["quantization"]
            default = {name: stated[name] for name in ("group_size", "bits", "mode")}
            weights = all_tensors(result.folder)
            model = load_model(result.folder)
            for path, module in model.named_modules():
                if "scales" in module:
                    path = path.removesuffix(".base")
                    assert f"{path}.scales" in weights
                    entry = stated.get(path, default)
                    assert entry == {name: getattr(module, name) for name in default}

    def test_several_are_each_as_if_alone(self, quantized, tmp_path):
        for result in quantized:
            (alone,) = convert(TINY, tmp_path / "a", quantize=True, q_bits=result.bits)
            for file in result.folder.iterdir():
                if file.name == "README.md":  # says where it is
                    continue
                assert (alone.folder / file.name).read_bytes() == file.read_bytes()
            shutil.rmtree(alone.folder)
        assert [r.folder.name for r in quantized] == ["tiny-4bit", "tiny-8bit"]
        assert [r.recipe for r in quantized] == ["speech_4bit", "speech_8bit"]

    def test_plan(self, quantized):
        for result in quantized:
            held = {k: v.nbytes for k, v in all_tensors(result.folder).items()}
            assert result.plan.after == sum(held.values())
            stored = mx.load(str(TINY / "model.safetensors"))
            stored |= mx.load(str(TINY / "out_llm.safetensors"))
            total = sum(value.nbytes for value in stored.values())
            # a BatchNorm that has been folded into a convolution counts in float32
            assert result.plan.before == pytest.approx(total, rel=0.005)
            for row in result.plan.rows:
                own = [n for name, n in held.items() if name.rpartition(".")[0] == row.path]
                assert row.after == sum(own)
        assert all(len(line) <= 80 for line in quantized[0].plan.lines())

    def test_shapes_in_the_plan_are_unpacked(self, quantized, tmp_path):
        again = convert(quantized[0].folder, tmp_path / "x", dry_run=True)[0].plan
        assert [row.shape for row in again.rows] == [r.shape for r in quantized[0].plan.rows]

    def test_dtype(self, tmp_path):
        (result,) = convert(TINY, tmp_path / "out", quantize=True, dtype="float16")
        assert {v.dtype for v in tensors(result.folder).values()} == {mx.float16, mx.uint32}
        assert json.loads((result.folder / "config.json").read_text())["dtype"] == "float16"
        with pytest.raises(InputError, match="dtype is 'int8'"):
            convert(TINY, tmp_path / "other", dtype="int8")

    def test_prompts_are_those_of_the_model_that_it_was_made_from(self, tiny_copy, tmp_path):
        """Names of folders tell 4.0 from 4.1; what is called mlx_model would not."""
        source = tiny_copy.rename(tmp_path / "granite-4.0-1b-speech")
        (result,) = convert(source, tmp_path / "mlx_model", quantize=True)
        assert load(result.folder)[1].prompts.title == "Granite 4.0 Speech"
        (again,) = convert(result.folder, tmp_path / "again")
        assert load(again.folder)[1].prompts.title == "Granite 4.0 Speech"

    def test_predicate(self, tmp_path):
        (result,) = convert(
            DECODERS / "llama",
            tmp_path / "out",
            quantize=True,
            q_group_size=32,
            quant_predicate=lambda path, module: path != "lm_head" and {"bits": 2},
        )
        assert result.recipe == "custom"
        model = load_model(result.folder)
        assert type(model.lm_head) is nn.Linear
        assert model.model.embed_tokens.bits == 2

    def test_layers_that_no_group_fits_are_told(self, tmp_path):
        (result,) = convert(DECODERS / "llama", tmp_path / "out", quantize=True)
        assert result.plan.notes[0].startswith("in groups of 32, 32 inputs are no multiple of 64")
        assert any(
            note.startswith("kept in float32, 48 inputs are no multiple of a group: model.layers.0")
            for note in result.plan.notes
        )


@pytest.fixture(scope="module")
def said(reference, tiny) -> dict[str, str]:
    """What the model says unquantized, by recording: what the reference says."""
    return {
        name: tiny[1].decode(texts["greedy_ids"], skip_special_tokens=True)
        for name, texts in reference["files"].items()
        if name.startswith("synthetic/")
    }


@pytest.mark.slow
def test_word_errors(quantized, said):
    """8 bits change no word; 4 bits cost at most 3 points, measured against what was spoken."""
    models = {result.bits: load_model(result.folder) for result in quantized}
    _, processor = load(TINY)
    parts = (tensors(result.folder) for result in quantized)
    encoders = [{k: v for k, v in p.items() if not k.startswith("language_")} for p in parts]
    assert same(*encoders)
    manifest = (DATA / "audio" / "manifest.jsonl").read_text(encoding="utf-8")
    recordings = map(json.loads, manifest.splitlines())
    spoken = {f"synthetic/{recording['file']}": recording["text"] for recording in recordings}
    words, errors = 0, dict.fromkeys((4, "original"), 0)
    for name, expected in said.items():
        inputs = speech_inputs(processor, name)
        # whose encoder therefore runs only once
        audio = models[8].get_audio_features(inputs["input_features"])
        for bits, model in models.items():
            model.get_audio_features = lambda *_, audio=audio, **__: audio
            output = model.generate(**inputs, max_new_tokens=60)
            found = output[0, inputs["input_ids"].shape[1] :].tolist()
            found = processor.decode(found, skip_special_tokens=True)
            if bits == 8:
                assert found == expected
            else:
                errors[bits] += word_errors(spoken[name], found)
            del model.get_audio_features
        words += len(spoken[name].split())
        errors["original"] += word_errors(spoken[name], expected)
    assert words > 100
    assert (errors[4] - errors["original"]) / words <= 0.03


def test_installed_under_the_package(tmp_path):
    """From anywhere, where the package is installed."""
    done = subprocess.run(
        [sys.executable, "-m", "mlx_speech.convert", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.startswith("usage: python -m mlx_speech.convert [options] --model MODEL")


def test_in_a_clone():
    """From the clone itself, whichever way the package is installed, if it is."""
    packages = sysconfig.get_path("purelib")
    done = subprocess.run(
        [sys.executable, "-S", "-m", "mlx_speech.convert", "--help"],  # no hook of an installation
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": packages},
    )
    assert done.stdout.startswith("usage: python -m mlx_speech.convert [options] --model MODEL")
