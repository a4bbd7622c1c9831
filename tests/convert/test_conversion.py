"""Conversion: what is written loads, says what it is, and is whole or not there at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from benchmarks.checkpoint import checkpoint_config, write_checkpoint
from conftest import DATA, ROOT, TINY, find_recording, random_decoder, speech_inputs
from mlx.utils import tree_flatten
from pytorch_files import save_pytorch_bin

from convert import Conversion, convert
from convert.shards import ShardWriter, TensorSpec
from convert.word_errors import word_errors
from mlx_speech import CheckpointError, InputError, load, transcribe
from mlx_speech.checkpoint.quantization import resolve_quantization
from mlx_speech.layers.lora import LoRALinear
from mlx_speech.loading import load_model

TINY_S2T = ROOT / "examples" / "tiny-s2t"
DECODERS = DATA / "decoders"
FAMILIES = [TINY, TINY_S2T, *sorted(DECODERS.iterdir())]
TOKENS = mx.array([[5, 9, 33, 2, 60]])
RECORDING = "synthetic/flite_08.flac"
STORED = {TINY: mx.bfloat16, TINY_S2T: mx.float16}


def logits(model) -> mx.array:
    """Of a text, or of a sound for a speech model."""
    mx.random.seed(0)
    kind = model.config.model_type
    if kind == "speech_to_text":
        return model(mx.random.normal((1, 40, 80)), decoder_input_ids=TOKENS).logits
    if kind == "granite_speech":
        features = mx.random.normal((1, 20, 160))
        ids = mx.array([[2, 89, *([4] * 6), 90]])
        return model(ids, input_features=features).logits
    return model(TOKENS).logits


def tensors(folder: Path) -> dict[str, mx.array]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    result = {}
    for file in sorted(set(index["weight_map"].values())):
        read, metadata = mx.load(str(folder / file), return_metadata=True)
        assert metadata == {"format": "mlx"}
        assert all(index["weight_map"][name] == file for name in read)
        result |= read
    assert result.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in result.values())
    return result


def same(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(mx.array_equal(a[k], b[k]).item() for k in a)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory) -> list[Conversion]:
    """The bundled model in 4 and 8 bits, of one pass."""
    folder = tmp_path_factory.mktemp("quantized")
    return convert(TINY, folder / "tiny", quantize=True, q_bits=[4, 8])


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
            for name in source - {"model.safetensors", "config.json"}:
                assert (result.folder / name).read_bytes() == (TINY / name).read_bytes()

    def test_other_files_of_a_source(self, tiny_copy, tmp_path):
        mx.save_safetensors(str(tiny_copy / "out_llm.safetensors"), {"weight": mx.ones((4, 4))})
        for name in ("LICENSE", "vocab.json", "merges.txt", "chat_template.json"):
            (tiny_copy / name).write_text("{}")
        for name in ("model.py", "pytorch_model.bin", "sample.wav"):
            (tiny_copy / name).write_text("not for us")
        (result,) = convert(tiny_copy, tmp_path / "out", quantize=True)
        held = {path.name for path in result.folder.iterdir()}
        assert held >= {"LICENSE", "vocab.json", "merges.txt", "chat_template.json"}
        assert not held & {"model.py", "pytorch_model.bin", "sample.wav"}
        second = (tiny_copy / "out_llm.safetensors").read_bytes()
        assert (result.folder / "out_llm.safetensors").read_bytes() == second
        assert load(result.folder)

    def test_chat_templates_of_several_names(self, tiny_copy, tmp_path):
        (tiny_copy / "additional_chat_templates").mkdir()
        (tiny_copy / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
        (tiny_copy / "additional_chat_templates" / "notes.txt").write_text("not for us")
        (result,) = convert(tiny_copy, tmp_path / "out")
        templates = load(result.folder)[1].tokenizer.chat_template
        assert templates["tool_use"] == "{{ tools }}"
        held = (result.folder / "additional_chat_templates").iterdir()
        assert [file.name for file in held] == ["tool_use.jinja"]

    def test_config(self, quantized):
        for result, bits in zip(quantized, (4, 8), strict=True):
            config = json.loads((result.folder / "config.json").read_text())
            stated = config.pop("quantization")
            assert config.pop("quantization_config") == stated
            assert config.pop("base_model") == "tiny-granite-speech"
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
            weights = tensors(result.folder)
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
            held = {k: v.nbytes for k, v in tensors(result.folder).items()}
            assert result.plan.after == sum(held.values())
            stored = mx.load(str(TINY / "model.safetensors"))
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
            model.get_audio_features = lambda *_, audio=audio: audio
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


class TestQuantizedSource:
    def test_is_refused(self, quantized, tmp_path):
        with pytest.raises(CheckpointError, match="already quantized, to 8 bits for the most part"):
            convert(quantized[1].folder, tmp_path / "out", quantize=True)
        assert not list(tmp_path.iterdir())

    def test_is_copied_as_it_is(self, quantized, tmp_path):
        (result,) = convert(quantized[0].folder, tmp_path / "out")
        assert same(tensors(result.folder), tensors(quantized[0].folder))
        stated, expected = (
            json.loads((folder / "config.json").read_text())["quantization"]
            for folder in (result.folder, quantized[0].folder)
        )
        model = load_model(result.folder)
        for path, module in model.named_modules():
            if "scales" in module:
                path = path.removesuffix(".base")
                assert stated.get(path, stated)["bits"] == expected.get(path, expected)["bits"]

    @pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4"])
    def test_dequantize(self, tmp_path, mode):
        options = {
            "quantize": True,
            "q_mode": mode,
            "q_group_size": 32 if mode == "affine" else None,
        }
        (small,) = convert(DECODERS / "llama", tmp_path / "small", **options)
        (result,) = convert(small.folder, tmp_path / "out", dequantize=True)
        config = json.loads((result.folder / "config.json").read_text())
        assert not {"quantization", "quantization_config"} & config.keys()
        found, original = tensors(result.folder), mx.load(str(DECODERS / "llama/model.safetensors"))
        assert found.keys() == original.keys()
        assert {v.dtype for v in found.values()} == {mx.float32}
        packed = tensors(small.folder)
        for name, value in found.items():
            scales = packed.get(f"{name.removesuffix('.weight')}.scales")
            if scales is None:
                assert mx.array_equal(value, original[name]).item()
            elif mode == "affine":
                error = mx.abs(value - original[name]).reshape(*scales.shape, -1)
                assert (error <= mx.abs(scales)[..., None] * 1.001).all().item()
        model = load_model(result.folder)
        assert mx.allclose(logits(model), logits(load_model(small.folder)), atol=1e-4).item()

    def test_quantize_anew(self, quantized, tmp_path):
        (result,) = convert(
            quantized[1].folder, tmp_path / "out", quantize=True, dequantize=True, q_bits=4
        )
        assert result.bits == 4
        model = load_model(result.folder)
        assert model.language_model.model.embed_tokens.bits == 4
        assert transcribe(find_recording(RECORDING), load(result.folder)).text == (
            "unlock the back gate"
        )

    def test_nothing_to_dequantize(self, tmp_path):
        with pytest.raises(CheckpointError, match="not quantized; leave out dequantize"):
            convert(TINY, tmp_path / "out", dequantize=True)


class TestAdapter:
    def test_stays_separate(self, quantized):
        model = load_model(quantized[0].folder)
        adapted = [m for m in model.modules() if isinstance(m, LoRALinear)]
        assert len(adapted) == 8
        assert all(isinstance(m.base, nn.QuantizedLinear) for m in adapted)

    def test_fused_before_quantizing(self, tmp_path):
        (result,) = convert(TINY, tmp_path / "out", quantize=True, fuse_adapter=True)
        assert result.fused_adapter["r"] == 32
        held = {path.name for path in result.folder.iterdir()}
        assert not held & {"adapter_config.json", "adapter_model.safetensors"}
        config = json.loads((result.folder / "config.json").read_text())
        assert config["has_lora_adapter"] is False
        assert config["fused_adapter"] == result.fused_adapter
        model, processor = load(result.folder)
        assert transcribe(find_recording(RECORDING), (model, processor)).text == (
            "unlock the back gate"
        )
        original = load_model(TINY, dtype=mx.float32)
        written = tensors(result.folder)
        for path, layer in original.named_modules():
            if isinstance(layer, LoRALinear):
                delta = layer.scale * layer.lora_b @ layer.lora_a
                weight = (layer.base.weight + delta).astype(mx.bfloat16)
                expected = mx.quantize(weight, 64, 4)
                for name, part in zip(("weight", "scales", "biases"), expected, strict=True):
                    assert mx.array_equal(written[f"{path}.{name}"], part).item()

    def test_fused_is_the_model_with_its_adapter_on(self, tmp_path):
        (result,) = convert(TINY, tmp_path / "out", fuse_adapter=True, dtype="float32")
        found, (original, processor) = load_model(result.folder), load(TINY)
        inputs = speech_inputs(processor, RECORDING)
        expected = original(**inputs).logits
        assert mx.abs(found(**inputs).logits - expected).max().item() < 0.01
        # and so it is for text, where the original has it off
        text = mx.array([[2, 89, 40, 12]])
        difference = mx.abs(found(text).logits - original(text).logits).max().item()
        assert difference > 0.1

    def test_nothing_to_fuse(self, tmp_path):
        with pytest.raises(InputError, match="no adapter to fuse"):
            convert(DECODERS / "llama", tmp_path / "out", fuse_adapter=True)

    def test_never_into_quantized_weights(self, quantized, tmp_path):
        with pytest.raises(CheckpointError, match="an adapter vanishes in quantized weights"):
            convert(quantized[0].folder, tmp_path / "out", fuse_adapter=True)
        (result,) = convert(
            quantized[1].folder, tmp_path / "out", fuse_adapter=True, dequantize=True
        )
        assert transcribe(find_recording(RECORDING), load(result.folder)).text == (
            "unlock the back gate"
        )

    def test_a_broken_adapter_is_found(self, tiny_copy, tmp_path):
        (tiny_copy / "adapter_model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"adapter_model.safetensors is missing"):
            convert(tiny_copy, tmp_path / "out", quantize=True)
        (tiny_copy / "adapter_config.json").unlink()
        with pytest.raises(CheckpointError, match="needs its LoRA adapter"):
            convert(tiny_copy, tmp_path / "out", quantize=True)


class TestWhole:
    """A result is there as a whole, or what was there before."""

    def fail(self, monkeypatch, error, after: int = 20):
        """Have writing fail after some tensors."""
        write, count = ShardWriter.write, iter(range(10**6))

        def failing(self, name, array):
            if next(count) >= after:
                raise error
            write(self, name, array)

        monkeypatch.setattr(ShardWriter, "write", failing)

    def test_disk_full(self, monkeypatch, tmp_path):
        self.fail(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(CheckpointError, match="out: cannot be written: No space left on dev"):
            convert(TINY, tmp_path / "out", quantize=True)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("bits", [4, (4, 8)])
    def test_interrupted(self, monkeypatch, tmp_path, bits):
        self.fail(monkeypatch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            convert(TINY, tmp_path / "out", quantize=True, q_bits=bits)
        assert not list(tmp_path.iterdir())

    def test_what_was_there_stays_until_the_end(self, monkeypatch, tmp_path):
        (first,) = convert(DECODERS / "llama", tmp_path / "out")
        before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
        with pytest.raises(InputError, match="out exists; give another mlx_path, or overwrite"):
            convert(TINY, tmp_path / "out")
        with monkeypatch.context() as patch:
            self.fail(patch, OSError(errno.EIO, "broken disk"))
            with pytest.raises(CheckpointError, match="broken disk"):
                convert(TINY, tmp_path / "out", overwrite=True)
        assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before
        (second,) = convert(TINY, tmp_path / "out", overwrite=True)
        assert load_model(second.folder).config.model_type == "granite_speech"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_the_last_step_fails(self, monkeypatch, tmp_path):
        """What was there has gone out of the way, and comes back."""
        (first,) = convert(DECODERS / "llama", tmp_path / "out")
        rename = Path.rename

        def failing(path, target):
            if path.name.startswith(".out.") and not path.name.endswith(".old"):
                raise OSError(errno.EIO, "broken disk")
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", failing)
            with pytest.raises(CheckpointError, match="broken disk"):
                convert(TINY, tmp_path / "out", overwrite=True)
        assert load_model(first.folder).config.model_type == "llama"
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @contextmanager
    def waiting(self, source: Path, target: Path, where: str) -> Iterator[subprocess.Popen]:
        """A conversion in a process of its own that comes to a place, and is killed there."""
        code = (
            "import time\n"
            "from pathlib import Path\n"
            "from convert import convert\n"
            "from convert.source import Source\n"
            "def wait(*args, **options): print('now', flush=True); time.sleep(60)\n"
            "def rename(path, target, rename=Path.rename):\n"
            "    result = rename(path, target)\n"
            f"    if path.name == {target.name!r}: wait()\n"
            "    return result\n"
            f"{where}\n"
            f"convert({str(source)!r}, {str(target)!r}, quantize=True, overwrite=True)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "now\n"
            yield process
            process.kill()
            assert process.wait() == -signal.SIGKILL

    def test_killed(self, tmp_path):
        """What is left of it does not load, and goes with the next conversion; not before."""
        (tmp_path / "bin").mkdir()
        shutil.copy(DECODERS / "llama" / "config.json", tmp_path / "bin")
        weights = mx.load(str(DECODERS / "llama" / "model.safetensors"))
        save_pytorch_bin(tmp_path / "bin" / "pytorch_model.bin", weights)
        out, others = tmp_path / "out", tmp_path / ".out.others"
        others.mkdir()
        for _ in range(2):
            with self.waiting(tmp_path / "bin", out, "Source.copy_carried = wait"):
                left = set(tmp_path.iterdir()) - {out, others, tmp_path / "bin"}
                assert len(left) == 2
                (written,) = (path for path in left if (path / "model.safetensors").exists())
                with pytest.raises(CheckpointError, match=r"no config.json"):
                    load_model(written)
                # of a living one, nothing is touched
                convert(DECODERS / "llama", out, overwrite=True)
                assert all(path.exists() for path in left)
        convert(DECODERS / "llama", tmp_path / "out2")
        assert all(path.exists() for path in left)
        convert(DECODERS / "llama", out, overwrite=True)
        assert {path.name for path in tmp_path.iterdir()} == {"bin", "out", "out2", ".out.others"}

    def test_killed_while_it_replaces_a_model(self, tmp_path):
        out = tmp_path / "out"
        convert(DECODERS / "llama", out)
        with self.waiting(TINY, out, "Path.rename = rename"):
            assert not out.exists()
            assert len(list(tmp_path.iterdir())) == 2
        with pytest.raises(InputError, match="out exists; give another mlx_path, or overwrite"):
            convert(TINY, out)
        assert load_model(out).config.model_type == "llama"
        assert list(tmp_path.iterdir()) == [out]
        with self.waiting(TINY, out, "import shutil; shutil.rmtree = wait"):
            assert load_model(out).config.model_type == "granite_speech"
            assert len(list(tmp_path.iterdir())) == 2
        convert(DECODERS / "llama", out, overwrite=True)
        assert list(tmp_path.iterdir()) == [out]

    def test_disk_full_while_a_bin_is_rewritten(self, tmp_path):
        """Under a limit that the system enforces."""
        (tmp_path / "bin").mkdir()
        shutil.copy(DECODERS / "llama" / "config.json", tmp_path / "bin")
        weights = mx.load(str(DECODERS / "llama" / "model.safetensors"))
        save_pytorch_bin(tmp_path / "bin" / "pytorch_model.bin", weights)
        code = (
            "import resource\n"
            "from convert import convert\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            f"convert({str(tmp_path / 'bin')!r}, {str(tmp_path / 'out')!r})\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        last = done.stderr.splitlines()[-1]
        assert last.startswith("mlx_speech.errors.CheckpointError: ")
        assert "cannot be written: File too large" in last
        assert [path.name for path in tmp_path.iterdir()] == ["bin"]

    def test_too_little_room(self, monkeypatch, tmp_path):
        usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(CheckpointError, match=r"4.13 MB are to be written, but 1.00 MB are fr"):
            convert(TINY, tmp_path / "out", quantize=True)
        assert not list(tmp_path.iterdir())

    def test_never_over_the_source(self, tiny_copy, tmp_path):
        for target in (tiny_copy, tiny_copy.parent):
            with pytest.raises(InputError, match="is, or holds, the model to be converted"):
                convert(tiny_copy, target, quantize=True, overwrite=True)
        assert load(tiny_copy)

    def test_never_over_anything_but_a_model(self, tmp_path):
        home = tmp_path / "home"
        home.mkdir()
        (home / "letters.txt").write_text("dear")
        with pytest.raises(InputError, match="home is no model folder and is not overwritten"):
            convert(DECODERS / "llama", home, overwrite=True)
        with pytest.raises(InputError, match=r"letters.txt is a file"):
            convert(DECODERS / "llama", home / "letters.txt", overwrite=True)
        with pytest.raises(CheckpointError, match=r"letters.txt.* cannot be written"):
            convert(DECODERS / "llama", home / "letters.txt" / "below")
        assert (home / "letters.txt").read_text() == "dear"

    @pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
    def test_never_by_a_file_outside_the_source(self, hub, tmp_path, kind):
        source, outside = tmp_path / "source", tmp_path / f"mine.{kind}"
        shutil.copytree(DECODERS / "llama", source)
        (source / "model.safetensors").rename(outside)
        weight_map = dict.fromkeys(
            mx.load(str(outside), format="safetensors"), f"../{outside.name}"
        )
        (source / f"{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        hub.add("owner/model", source)
        before = outside.read_bytes()
        (result,) = convert(DECODERS / "llama", tmp_path / "out")
        for path in (source, "owner/model"):
            for options in ({}, {"dry_run": True}, {"quantize": True}):
                with pytest.raises(CheckpointError, match="is not the name of a file in its fold"):
                    convert(path, result.folder, overwrite=True, **options)
        with pytest.raises(CheckpointError, match="is not the name of a file in its folder"):
            load_model(source)
        assert outside.read_bytes() == before
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"home", "source", "out", outside.name}
        assert load_model(result.folder)

    def test_an_empty_folder_is_taken(self, tmp_path):
        (tmp_path / "out").mkdir()
        (result,) = convert(DECODERS / "llama", tmp_path / "out")
        assert load_model(result.folder)
        # with the rights of any new folder
        umask = os.umask(0)
        os.umask(umask)
        assert result.folder.stat().st_mode & 0o777 == 0o777 & ~umask

    def test_a_dry_run_writes_nothing(self, tmp_path):
        (result,) = convert(TINY, tmp_path / "a" / "out", quantize=True, dry_run=True)
        assert result.plan.after == 4125824
        assert not list(tmp_path.iterdir())


class TestShards:
    def test_limit(self, tmp_path):
        arrays = {f"t{i}": mx.full((100 + i, 3), i, mx.float16) for i in range(7)}
        arrays["large"] = mx.arange(2000, dtype=mx.float32)
        arrays["view"] = mx.arange(12).astype(mx.float32).reshape(3, 4).T
        arrays["scalar"] = mx.array(3.5, mx.bfloat16)
        specs = [TensorSpec.of(name, array) for name, array in arrays.items()]
        writer = ShardWriter(tmp_path, specs, 1300)
        for name, array in arrays.items():
            writer.write(name, array)
        writer.finish()
        files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
        assert files == [f"model-{i:05d}-of-00006.safetensors" for i in range(1, 7)]
        assert same(tensors(tmp_path), arrays)
        for file in files[:-1]:
            held = mx.load(str(tmp_path / file))
            assert len(held) == 1 or sum(v.nbytes for v in held.values()) <= 1300

    def test_a_model_in_shards(self, monkeypatch, tmp_path):
        monkeypatch.setattr(ShardWriter.__init__, "__defaults__", (10**6,))
        (result,) = convert(TINY, tmp_path / "out", quantize=True)
        assert len(list(result.folder.glob("model-*-of-00005.safetensors"))) == 5
        (expected,) = convert(TINY, tmp_path / "whole", quantize=True)
        assert same(tensors(result.folder), tensors(expected.folder))
        assert mx.array_equal(
            logits(load_model(result.folder)), logits(load_model(expected.folder))
        ).item()

    def test_another_order_than_announced(self, tmp_path):
        writer = ShardWriter(tmp_path, [TensorSpec("a", mx.float32, (2,))])
        with pytest.raises(ValueError, match="was announced"):
            writer.write("b", mx.zeros(2))


MEMORY = """
import json, sys
import mlx.core as mx
from convert import convert
loaded = mx.get_peak_memory()
mx.reset_peak_memory()
results = convert(sys.argv[1], sys.argv[2], quantize=True, **json.loads(sys.argv[3]))
print(mx.get_peak_memory(), sum(r.plan.after for r in results))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """A Llama of 85 MB in 8 shards of up to 12 MB; its largest layer has 2.1 MB."""
    folder = tmp_path_factory.mktemp("sharded")
    model = random_decoder(
        vocab_size=1000, hidden_size=512, intermediate_size=1024, num_hidden_layers=9
    )
    arrays = dict(tree_flatten(model.parameters()))
    specs = [TensorSpec.of(name, array) for name, array in arrays.items()]
    writer = ShardWriter(folder, specs, 12_000_000)
    for name, array in arrays.items():
        writer.write(name, array)
    writer.finish()
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert len(list(folder.glob("*.safetensors"))) == 8
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """A Granite Speech of 39 MB with BatchNorms to be folded; its largest layer has 0.5 MB."""
    folder = tmp_path_factory.mktemp("speech")
    config = checkpoint_config(8, 4, "bfloat16")
    config["encoder_config"] |= {"hidden_dim": 256, "dim_head": 32}
    projector = {"hidden_size": 256, "intermediate_size": 1024, "encoder_hidden_size": 256}
    config["projector_config"] |= projector
    text = {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512}
    config["text_config"] |= text | {"num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    write_checkpoint(folder)
    return folder


class TestMemory:
    """One module at a time, however large the checkpoint."""

    @pytest.mark.parametrize("options", [{}, {"q_bits": [4, 8]}, {"dtype": "bfloat16"}])
    def test_peak(self, sharded, tmp_path, options):
        peak, written = self.measure(sharded, tmp_path / "out", options)
        assert written > 10_000_000
        # far below the promise of two shards and a layer: a layer in every form that it takes
        assert peak < 3 * 2_100_000

    @pytest.mark.parametrize("options", [{}, {"q_bits": [4, 8]}])
    def test_peak_of_a_speech_model(self, speech, tmp_path, options):
        peak, written = self.measure(speech, tmp_path / "out", options)
        assert written > 19_000_000
        assert peak < 3 * 526_336

    def measure(self, source: Path, target: Path, options: dict) -> tuple[int, int]:
        """Most bytes in use at a time, and those of the results."""
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, source, target, json.dumps(options)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        peak, written = map(int, done.stdout.split())
        return peak, written


def test_installed_under_the_package(tmp_path):
    """From anywhere, where the package is installed."""
    done = subprocess.run(
        [sys.executable, "-m", "mlx_speech.convert", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.startswith("usage: python -m mlx_speech.convert [options] --model MODEL")


def test_every_package_is_installed():
    """setuptools is given a list."""
    listed = (ROOT / "pyproject.toml").read_text().split("packages = [")[1].split("]")[0]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "mlx_speech").rglob("__init__.py")
    }
    assert {line.strip(' ",') for line in listed.strip().splitlines()} == found | {
        "mlx_speech.convert"
    }
